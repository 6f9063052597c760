"""Draw the rooms of the package and their imports: ``docs/architecture.svg``, from the source.

``python tools/architecture_page.py`` writes the picture; ``--check`` fails where it is another.
"""

import io
import sys
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from source_tree import imports, layer_of, ours, package

PICTURE = Path(__file__).parents[1] / "docs" / "architecture.svg"

PLACES = {
    "core": (1.95, 0.0),
    "diagnostics": (0.0, 1.0),
    "optim": (1.3, 1.0),
    "export": (2.6, 1.0),
    "tuner": (3.9, 1.0),
    "training": (3.9, 2.0),
    "methods": (2.6, 3.0),
    "app": (1.95, 4.0),
    "studies": (0.65, 5.0),
    "cli": (1.95, 6.0),
}
"""Column and floor of each room."""

COLOURS = {"cli": "#dddddd", "app": "#cfe3f5", "studies": "#e6dcf3"}
LIBRARY_COLOUR = "#dcefdc"
WIDTH, HEIGHT = 1.1, 0.5


PURPOSES = {
    "core": "every equation, once",
    "optim": "rival optimizers, Muon",
    "diagnostics": "ranks, alignment, drift",
    "tuner": "the PEFT method",
    "export": "adapters for others",
    "training": "schedule, checks",
    "methods": "what is compared",
    "app": "train, evaluate, export",
    "studies": "compare, reproduce, report",
    "cli": "names the commands",
}


def arrows() -> set[tuple[str, str]]:
    """Return which room imports which, without what follows from a chain of other arrows."""
    tree = package()
    direct = {
        (layer_of(path), layer_of(target))
        for path in tree
        for name in imports(tree, path)
        if (target := ours(tree, name)) is not None
    }
    direct = {(a, b) for a, b in direct if a != b and {a, b} <= PLACES.keys()}
    reached: dict[str, set[str]] = {room: {b for a, b in direct if a == room} for room in PLACES}
    for room in sorted(PLACES, key=lambda name: PLACES[name][1]):
        reached[room] |= {far for near in reached[room] for far in reached[near]}
    return {(a, b) for a, b in direct if not any(b in reached[c] for x, c in direct if x == a)}


def draw() -> str:
    """Return the picture as SVG, the same for the same source."""
    figure = Figure(figsize=(7.5, 6.4), layout="constrained")
    axes = figure.subplots()
    for above, below in sorted(arrows()):
        (x, y), (to_x, to_y) = PLACES[above], PLACES[below]
        axes.annotate(
            "",
            xy=(to_x, to_y + HEIGHT / 2),
            xytext=(x, y - HEIGHT / 2),
            arrowprops={"arrowstyle": "-|>", "color": "#666666", "linewidth": 1.2},
        )
    for name, purpose in PURPOSES.items():
        x, y = PLACES[name]
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0.02",
            facecolor=COLOURS.get(name, LIBRARY_COLOUR),
            edgecolor="#444444",
        )
        axes.add_patch(box)
        axes.text(x, y + 0.09, name, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(x, y - 0.11, purpose, ha="center", va="center", fontsize=7.5)
    axes.set(xlim=(-0.65, 4.55), ylim=(-0.4, 6.4))
    axes.set_axis_off()
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sdslora", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


if __name__ == "__main__":
    picture = draw()
    if "--check" not in sys.argv:
        PICTURE.write_text(picture)
    elif PICTURE.read_text() != picture:
        sys.exit(f"{PICTURE.name} is not what the source says: run tools/architecture_page.py")
