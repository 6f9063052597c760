"""Fill docs/commands.md with the help of every command."""

import contextlib
import io
import os
import re
from pathlib import Path

from page import main
from sdslora import SdsLoraConfig, cli
from sdslora.app.config.training_config import TrainingConfig

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
WIDTH = 96
"""Columns of a terminal, as wide as a block on the site."""
SHOWN = {
    "training": {
        *vars(TrainingConfig)["__annotations__"],
        "max_steps",
        "max_length",
        "warmup_steps",
    },
    "adapter": {*vars(SdsLoraConfig)["__annotations__"], "r", "target_modules", "modules_to_save"},
}
"""Of the sections with more than a hundred options: those with a default of ours, and a few."""


def help_of(*words: str) -> str:
    """What ``sdslora WORDS --help`` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    # without characters that only steer a terminal's line breaks
    return "".join(c for c in printed.getvalue() if c.isprintable() or c == "\n")


def shortened(text: str) -> str:
    """The help without what belongs to PEFT and TRL; it says how many options were left out."""
    first, *options = re.split(r"^(?=  --)", text, flags=re.MULTILINE)
    kept, left_out = [first], 0
    for option in options:
        section, _, name = option.split()[0].removeprefix("--").partition(".")
        if name and name not in SHOWN.get(section, {name}):
            left_out += 1
            # the heading of the next section stands at the end
            kept.append("".join(re.findall(r"\n\w.*", option, flags=re.DOTALL)))
        else:
            kept.append(option)
    text = "".join(kept).rstrip()
    if left_out:
        text += (
            f"\n\n({left_out} more options of PEFT's LoraConfig and TRL's SFTConfig are not shown.)"
        )
    return text


def sections() -> str:
    """One section a command."""
    commands = [[name] for name in cli.COMMANDS]
    commands.insert(2, ["evaluate", "--tasks", "boolq"])
    texts = [
        f"## sdslora {' '.join(words)}\n\n```text\n{shortened(help_of(*words))}\n```"
        for words in commands
    ]
    return "\n" + "\n\n".join(texts) + "\n"


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(WIDTH)
    main(PAGE, {"commands": sections()}, __doc__)
