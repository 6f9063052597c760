"""The grids of the paper's tables: models, training sets, tasks, methods, ranks and rates.

Source: the SDS-LoRA paper (arXiv 2606.16454). The paper leaves some values open (lengths,
templates, decoding), which come from the baselines' own code. docs/reproduce.md lists the
assumptions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ....app import Json
from ....tuner import Preset

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
PRESET: Preset = "paper"
"""The preset that every reproduction names."""
Entry = str | Mapping[str, object]
"""A method by name, or with options."""


@dataclass(frozen=True)
class Model:
    """A model of the tables.

    Attributes:
        name: Hub id, or one of this package's own names.
        rate: learning rate of every low-rank method.
        full_rate: learning rate of full fine-tuning.
        target_modules: layers to adapt.
    """

    name: str
    rate: float
    full_rate: float
    target_modules: str | list[str] = field(default_factory=lambda: list(LINEAR))


@dataclass(frozen=True)
class Part:
    """A training set of the tables, and the tasks or rows that measure a trained model.

    Attributes:
        data: the data section.
        tasks: tasks of lm-evaluation-harness; without any, the data's own test rows.
        training: the training section.
        rows: training rows at paper scale.
        tokens: the most tokens of a row, or the patches of an image.
        test: the number of held-out rows, or the split to test on. The learning rates are fixed, so
            that no other rows are needed to choose them.
        rate_factor: the factor on the model's learning rates.
        folder: the folder of images, below a directory of local data.
        generation: overrides of the tasks' decoding.
        limit: rows of a task.
    """

    data: Mapping[str, Json]
    tasks: Sequence[str] = ()
    training: Mapping[str, Json] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    test: int | str = 120
    rate_factor: float = 1.0
    folder: str | None = None
    generation: Mapping[str, object] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True)
class Scale:
    """A table's grid: every method on every model, part and rank, with every seed."""

    models: Mapping[str, Model]
    parts: Mapping[str, Part]
    ranks: Sequence[int]
    methods: Sequence[Entry]
    seeds: int


@dataclass(frozen=True)
class Table:
    """One table, at the paper's scale if it can be run, and small."""

    title: str
    scales: Mapping[str, Scale]


GEMMA = Model("google/gemma-2b", 2e-4, 2e-5)
LLAMA2 = Model("meta-llama/Llama-2-7b-hf", 2e-4, 2e-5)
LLAMA3 = Model("meta-llama/Meta-Llama-3-8B", 1e-4, 1e-5)
_LANGUAGE = {"gemma-2b": GEMMA, "llama3-8b": LLAMA3}
_ADAMW = {"optim": "adamw_torch", "weight_decay": 0.0, "lr_scheduler_type": "cosine"}
_PAPER = {
    "per_device_train_batch_size": 32,
    "num_train_epochs": 1,
    "max_length": 1024,
    **_ADAMW,
}
_COMMONSENSE_TASKS = (
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_challenge", "arc_easy", "openbookqa"
)  # fmt: skip

COMMONSENSE = Part(
    {"source": "commonsense-170k", "holdout": 120}, _COMMONSENSE_TASKS, _PAPER, 170_420, 256
)
MATH = Part({"source": "metamathqa-100k", "holdout": 120}, ("math", "gsm8k"), _PAPER, 100_000, 512)
CODE = Part({"source": "code-feedback-100k", "holdout": 120}, ("humaneval",), _PAPER, 100_000, 1023)

_QUERY_VALUE = ["q_proj", "v_proj"]
# Assumed: full fine-tuning has a tenth of the rate, as on language.
VIT_BASE = Model("google/vit-base-patch16-224-in21k", 2e-3, 2e-4, _QUERY_VALUE)
VIT_LARGE = Model("google/vit-large-patch16-224-in21k", 1e-3, 1e-4, _QUERY_VALUE)
_HELD_OUT = 120


def _images(
    source: str, folder: str, rows: int, epochs: int, rate_factor: float = 1.0, test: str = "test"
) -> Part:
    """Return the part of a data set of images with ``rows`` in its training split."""
    return Part(
        {"source": source, "holdout": _HELD_OUT},
        training={
            "per_device_train_batch_size": 64,
            "num_train_epochs": epochs,
            "dataloader_num_workers": 8,  # which open the images
            **_ADAMW,
        },
        rows=rows - _HELD_OUT,
        tokens=(224 // 16) ** 2 + 1,
        test=test,
        rate_factor=rate_factor,
        folder=folder,
    )


IMAGES = {
    "Cars": _images("tanganke/stanford_cars", "cars", 8_144, 5, 2.5),
    "CUB200": _images("bentrevett/caltech-ucsd-birds-200-2011", "cub200", 5_994, 7),
    "DTD": _images("tanganke/dtd", "dtd", 3_760, 7),
    "Food101": _images("ethz/food101", "food101", 75_750, 7, test="validation"),
    "SUN397": _images("tanganke/sun397", "sun397", 19_850, 5, 2.5),
}
_TABLE_3_IMAGES = {name: IMAGES[name] for name in ("Cars", "CUB200", "SUN397")}

# Small: the bench, and SmolLM2 where the words of the paper's tasks matter.
_SMALL_TRAINING = {"per_device_train_batch_size": 8, "max_steps": 24, "logging_steps": 4}
_SMALL_COMMONSENSE = Part(
    {"source": "commonsense-170k", "holdout": 8, "size": 192},
    tuple(task for task in _COMMONSENSE_TASKS if task != "hellaswag"),
    _SMALL_TRAINING,
    test=8,
    generation={"num_beams": 1, "max_gen_toks": 8},
    limit=8,
)
_SMOLLM2 = {"smollm2": Model("smollm2", 1e-3, 1e-4, "all-linear")}
_TINY = {"tiny-lm": Model("bench:tiny-lm", 4e-3, 1e-3, "all-linear")}
_CIPHER = Part(
    {
        "source": "bench:cipher",
        "prompt": "{question}",
        "completion": "{answer}",
        "holdout": 50,
    },
    training={"per_device_train_batch_size": 32, "max_steps": 80, "logging_steps": 5},
    test=200,
)
_VIT = {"digits-vit": Model("bench:digits-vit", 2e-3, 1e-3, "all-linear")}
_DIGITS = Part(
    {
        "source": "digits",
        "options": {"rotate": 1, "invert": True, "relabel": 3, "orientations": 4},
    },
    training={"per_device_train_batch_size": 32, "max_steps": 200, "logging_steps": 10},
)

_SDS = {"method": "sds-lora", "preset": PRESET}
_MAIN: list[Entry] = ["full", "lora", "rslora", "lora+", "pissa", "dora", _SDS]
# the paper's AltLoRA is one of two variants, and it does not say which
_RECENT: list[Entry] = ["lora-ga", "lora-pro", "scaled-adamw", "altlora", "altlora+", _SDS]
_FORMS: list[Entry] = ["full", "rslora", "orthonormal", _SDS]
_SCHEDULES: list[Entry] = [
    *({**_SDS, "refresh_every": k} for k in (1, 2, 3)),
    *({**_SDS, "refresh_phases": tau} for tau in (3, 4, 5, 6, 7)),
]
_MATH_CODE = {"MetaMathQA-100K": MATH, "Code-Feedback-100K": CODE}
_SMALL_LM = {"bench:cipher": _CIPHER}
_VISION_SMALL = Scale(_VIT, {"digits, turned and relabelled": _DIGITS}, (2, 4), _MAIN, 3)

TABLES = {
    "table1": Table(
        "Table 1: commonsense reasoning",
        {
            "small": Scale(
                _SMOLLM2, {"commonsense, local part": _SMALL_COMMONSENSE}, (8,), _MAIN, 1
            ),
            "paper": Scale(_LANGUAGE, {"Commonsense-170K": COMMONSENSE}, (8, 32), _MAIN, 3),
        },
    ),
    "table2": Table(
        "Table 2: mathematics and code",
        {
            "small": Scale(_TINY, _SMALL_LM, (4, 8), _MAIN, 3),
            "paper": Scale(_LANGUAGE, _MATH_CODE, (8, 32), _MAIN, 3),
        },
    ),
    "table3": Table(
        "Table 3: image classification, ViT-Base",
        {
            "small": _VISION_SMALL,
            "paper": Scale({"vit-base": VIT_BASE}, _TABLE_3_IMAGES, (8, 32), _MAIN, 3),
        },
    ),
    "table4": Table(
        "Table 4: recent methods",
        {
            "small": Scale(_TINY, _SMALL_LM, (8,), _RECENT, 3),
            "paper": Scale(_LANGUAGE, _MATH_CODE, (8,), _RECENT, 3),
        },
    ),
    "table5": Table(
        "Table 5: the parameterization",
        {
            "small": Scale(_TINY, _SMALL_LM, (8,), _FORMS, 3),
            "paper": Scale(_LANGUAGE, _MATH_CODE, (32,), _FORMS, 3),
        },
    ),
    "table7": Table(
        "Table 7: schedules of refreshes",
        {
            "small": Scale(_TINY, _SMALL_LM, (8,), _SCHEDULES, 3),
            "paper": Scale({"llama3-8b": LLAMA3}, {"MetaMathQA-100K": MATH}, (32,), _SCHEDULES, 3),
        },
    ),
    "table8": Table(
        "Table 8: image classification, five data sets",
        {
            "small": _VISION_SMALL,
            "paper": Scale(
                {"vit-base": VIT_BASE, "vit-large": VIT_LARGE}, IMAGES, (8, 32), _MAIN, 3
            ),
        },
    ),
}
"""The tables that compare trained models; table 6 compares costs."""

LLAMA2_RECIPES = Table(
    "LLaMA2-7B on Table 2's data, of which the paper names the rate and prints no figure",
    {"paper": Scale({"llama2-7b": LLAMA2}, _MATH_CODE, (8, 32), [_SDS], 3)},
)
"""Recipes alone, outside the tables."""
