"""The picture of a run's loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ... import RefreshSchedule

_TRAIN, _EVAL, _MARK = "#4477aa", "#ee6677", "#228833"  # told apart by colour-blind readers too


def loss_curve(
    history: Sequence[Mapping[str, float]], schedule: RefreshSchedule, path: Path, title: str
) -> None:
    """Draw training and evaluation loss by step, with the schedule's events, as a PNG.

    Args:
        history: the trainer's log: entries with ``step`` and ``loss`` or ``eval_loss``.
        schedule: marks the re-parameterization and, along the bottom, each refresh.
        path: the file to write.
        title: stands above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for key, line, colour, label in (
        ("loss", "-", _TRAIN, "training loss"),
        ("eval_loss", "o-", _EVAL, "evaluation loss"),
    ):
        steps, losses = _series(history, key)
        if steps:
            axes.plot(steps, losses, line, color=colour, label=label)

    actions = {step: schedule.action(step) for step in range(1, schedule.total_steps + 1)}
    starts = [step for step, action in actions.items() if action == "reparameterize"]
    refreshes = [step for step, action in actions.items() if action == "refresh"]
    for step in starts:
        axes.axvline(step, color=_MARK, linestyle="--", label=f"re-parameterization ({step})")
    axes.plot(
        refreshes,
        [0.015] * len(refreshes),
        "|",
        color=_MARK,
        transform=axes.get_xaxis_transform(),
        label=f"{len(refreshes)} refreshes",
    )
    axes.set(title=title, xlabel="optimizer step", ylabel="loss (nats per completion token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(path)


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]
