"""Fill docs/troubleshooting.md: every warning and error of the library, from its source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCE = ROOT / "src" / "sdslora"
ROOMS = ("core/schedule.py", "tuner", "training", "export")
NOT_NAMES = {"join", "len", "list", "none", "or", "self", "sorted", "type"}
"""Words of the source that do not name the value that is filled in."""
CONFIG = SOURCE / "tuner" / "config.py"


class Message(NamedTuple):
    """What a warning or an error says; ``kind`` is its class, or "warning"."""

    kind: str
    text: str


def messages(room: str) -> Iterator[Message]:
    """Those of the files of a room, or of one file, by file and line."""
    for path in [SOURCE / room] if room.endswith(".py") else sorted((SOURCE / room).rglob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "lineno")]
        for node in sorted(nodes, key=lambda node: node.lineno):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield from message(ast.unparse(node.exc.func), node.exc.args)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                yield from message("warning", node.args)


def message(kind: str, arguments: list[ast.expr]) -> Iterator[Message]:
    """The message among the arguments, where one of them is written out."""
    texts = [shown(argument) for argument in arguments]
    sentences = [text for text in texts if " " in text]
    if kind.endswith(("Error", "Failed", "warning")) and kind != "AttributeError" and sentences:
        check = f" `{texts[0]}`" if kind == "CheckFailed" else ""
        yield Message(kind + check, sentences[0])


def shown(node: ast.expr) -> str:
    """A string as the user sees it; each value that is filled in as ``<its name>``."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(shown, node.values))
    if isinstance(node, ast.FormattedValue):
        words = re.findall(r"(?<!\w)[a-z]\w*", ast.unparse(node.value))
        names = [word for word in words if word not in NOT_NAMES]
        return f"<{names[-1] if names else '...'}>"
    return ""


def listed(room: str, checks: bool = False) -> str:
    """A list of the room's messages; of the checks, or all others."""
    found = dict.fromkeys(m for m in messages(room) if m.kind.startswith("CheckFailed") == checks)
    # double backticks, since messages quote with single ones
    lines = "\n".join(f"- {one.kind}: `` {one.text} ``" for one in found)
    return f"\n{lines}\n"


def unsupported() -> str:
    """The options of LoraConfig that are rejected, with the way out."""
    for node in ast.walk(ast.parse(CONFIG.read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_UNSUPPORTED":
            ways = ast.literal_eval(node.value)
            return table(["option", "instead"], [[f"`{o}`", way] for o, way in ways.items()])
    raise SystemExit(f"{CONFIG} has no _UNSUPPORTED")


if __name__ == "__main__":
    texts = {Path(room).stem: listed(room) for room in ROOMS}
    main(
        PAGE,
        texts | {"checks": listed("training", checks=True), "unsupported": unsupported()},
        __doc__,
    )
