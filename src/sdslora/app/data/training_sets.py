"""The training sets of the paper's tables, by name: their rows, templates and lengths.

Sources: LLM-Adapters' ``finetune.py`` (Commonsense-170K), MetaMath and PiSSA (MetaMathQA), and the
data of LoRA-GA (Code-Feedback, and its own MetaMathQA). Lengths are in tokens of the model that is
trained; LoRA-GA counts those of LLaMA-2.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..config.spec import DataSpec
from ..errors import UserError, nearest
from . import readers
from .encoding import EncodingOptions
from .readers import Row
from .templates import Template

_HUNDRED_THOUSAND = 100_000
_FOLDER = "dir"  # the option that names the folder of local files
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{query}\n\n### Response:"
)
# Space for space LLM-Adapters': two at the end of the sentence, sixteen before each line, and on
# the blank one before the response.
_COMMONSENSE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.  \n\n"
    "                ### Instruction:\n"
    "                {instruction}\n"
    "                \n"
    "                ### Response:\n"
    "                "
)


@dataclass(frozen=True)
class TrainingSet:
    """One of the sets.

    Attributes:
        hub: data set on the Hub, its configuration, and its split.
        files: pattern of the local files, JSON or JSONL, below ``data.options.dir``.
        fields: the fields that a row must have.
        template: the template of prompt and completion.
        encoding: the options that leave out or cut rows, and say which tokens bear loss.
        size: rows to train on, the first ones; None for all.
        prepare: returns a row as the template needs it, or the reason to leave it out.
    """

    hub: tuple[str, str | None, str]
    files: str
    fields: tuple[str, ...]
    template: Template
    encoding: EncodingOptions
    size: int | None = None
    prepare: Callable[[Row], Row | str] = lambda row: row


def read(spec: DataSpec, at_most: int | None) -> tuple[list[Row], dict[str, int]]:
    """Read the set that ``spec.source`` names; each row is a ``prompt`` and a ``completion``.

    Args:
        spec: ``options.dir`` is a folder with local files; the Hub is read where it is not given.
        at_most: rows to read; None for all. Rows that are left out do not count.

    Returns:
        The rows in the set's order, and by reason how many are left out.

    Raises:
        UserError: for an unknown option, or a missing file or field.
    """
    training_set = TRAINING_SETS[spec.source]
    wrong = next((option for option in spec.options if option != _FOLDER), None)
    if wrong is not None:
        raise UserError(
            f"data.options: {spec.source} has no option `{wrong}`{nearest(wrong, [_FOLDER])}"
        )
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(_source_rows(training_set, spec)):
        if len(rows) == at_most:
            break
        missing = next((field for field in training_set.fields if row.get(field) is None), None)
        if missing is not None:
            flaw = "null in" if missing in row else "no"
            raise UserError(
                f"{spec.source}: row {number} has {flaw} field `{missing}`; it has: "
                f"{', '.join(row)}"
            )
        result = training_set.prepare(row)
        if isinstance(result, str):
            left_out[result] += 1
            continue
        example = training_set.template.render(result, number)
        rows.append({"prompt": example.prompt, "completion": example.completion})
    return rows, dict(left_out)


def _source_rows(training_set: TrainingSet, spec: DataSpec) -> Iterable[Row]:
    """Read the rows of the source: a stream from the Hub, or local files, shuffled if several."""
    if _FOLDER not in spec.options:
        name, configuration, split = training_set.hub
        return readers.read_hub(DataSpec(source=name, name=configuration), split, streaming=True)
    folder = Path(str(spec.options[_FOLDER])).expanduser()
    files = sorted(folder.glob(training_set.files))
    if not files:
        raise UserError(
            f"{spec.source}: there is no {folder / training_set.files}; leave out data.options."
            f"{_FOLDER} to read the Hugging Face Hub"
        )
    rows = list(chain.from_iterable(readers.read_file(str(file)) for file in files))
    if len(files) > 1:
        random.Random(spec.seed).shuffle(rows)
    return rows


def _with_answer(field: str) -> Callable[[Row], Row | str]:
    """Return a function that accepts any row whose answer is not empty."""
    return lambda row: row if str(row[field]).strip() else "empty answer"


def _code(row: Row) -> Row | str:
    """Return the row with its answer up to the end of the first code block."""
    before, fence, rest = str(row["answer"]).partition("```")
    if not fence:
        return "no code block"
    return {**row, "answer": f"{before}```{rest.partition('```')[0]}```"}


def _gsm(row: Row) -> Row | str:
    """Return a row made from GSM8K, its answer up to the ``#### N`` before the marker.

    LoRA-GA's evaluation reads that number.
    """
    if not str(row["type"]).startswith("GSM"):
        return "not from GSM8K"
    return _with_answer("response")(
        {**row, "response": row["response"].split("\nThe answer is:")[0]}
    )


def _gsm8k(row: Row) -> Row:
    """Return a row of GSM8K as MetaMathQA has it: the answer repeated after its marker."""
    final = str(row["answer"]).rpartition("#### ")[2].strip()
    return {"query": row["question"], "response": f"{row['answer']}\nThe answer is: {final}"}


_METAMATH = ("meta-math/MetaMathQA", None, "train")
_METAMATH_FILES = "math/metamathqa/train.json*"
_AS_IN_METAMATH = Template(_ALPACA, "{response}")
_CUT_AT_512 = EncodingOptions(max_tokens=512, overlong="cut")

TRAINING_SETS = {
    "commonsense-170k": TrainingSet(
        ("zwhe99/commonsense_170k", None, "train"),
        "commonsense/*/train.json*",
        ("instruction", "output"),
        Template(_COMMONSENSE, "{output}"),
        EncodingOptions(max_tokens=256, overlong="cut", loss_on_prompt=True),
        prepare=_with_answer("output"),
    ),
    "metamathqa-100k": TrainingSet(
        _METAMATH,
        _METAMATH_FILES,
        ("query", "response"),
        _AS_IN_METAMATH,
        _CUT_AT_512,
        _HUNDRED_THOUSAND,
        _with_answer("response"),
    ),
    "metamathqa-100k-lora-ga": TrainingSet(
        _METAMATH,
        _METAMATH_FILES,
        ("query", "response", "type"),
        Template("Q: {query}\nA: ", " {response}"),
        EncodingOptions(max_tokens=511, overlong="drop"),
        _HUNDRED_THOUSAND,
        _gsm,
    ),
    "code-feedback-100k": TrainingSet(
        ("m-a-p/CodeFeedback-Filtered-Instruction", None, "train"),
        "code/code-feedback/train.json*",
        ("query", "answer"),
        Template(f"{_ALPACA}\n", " {answer}"),
        EncodingOptions(max_tokens=1023, overlong="drop"),
        _HUNDRED_THOUSAND,
        _code,
    ),
    # not the paper's: GSM8K's own training rows, which are small, in MetaMathQA's words
    "gsm8k": TrainingSet(
        ("openai/gsm8k", "main", "train"),
        "math/gsm8k/train.json*",
        ("question", "answer"),
        _AS_IN_METAMATH,
        _CUT_AT_512,
        prepare=_gsm8k,
    ),
}
"""By the name that ``data.source`` takes."""
