"""The pictures: which are written, and that nothing off the axis goes unmarked."""

import math

import pytest
from made_up import grid, run

from sdslora.studies.compare import plots
from sdslora.studies.statistics.statistics import compare


def comparison(**entries):
    runs = grid({1e-4: [0.5, 0.6], 1e-3: [0.4, 0.5], 1e-2: [9.0, 9.0], 1e-1: [1.0, "diverged"]})
    runs += [run("dora", seed=seed) for seed in (0, 1)]
    return compare([record | entries for record in runs])


def test_pictures_without_data_are_left_out(tmp_path) -> None:
    written = plots.save(comparison(), tmp_path)
    assert [path.name for path in written] == ["learning_rate.png", "learning_rate.svg"]


def test_same_bytes_each_time(tmp_path) -> None:
    measured = comparison(curve=[[1, 2.0], [2, 1.0]], general_loss={"before": 1.0, "after": 1.5})
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        plots.save(measured, folder)
    first, second = (sorted(folder.iterdir()) for folder in folders)
    assert len(first) == 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_what_lies_off_the_loss_axis_is_marked_above_it() -> None:
    # dora's 1.0 and lora's 9.0 are beyond twice 0.45, the better of the two best
    figure = plots.learning_rate(comparison())
    [axes] = figure.axes
    figure.canvas.draw()
    edge = axes.get_xaxis_transform()
    marks = [line for line in axes.lines if line.get_transform() == edge]
    assert {(line.get_xdata()[0], line.get_marker()) for line in marks} == {
        (1e-3, "$\\uparrow$"),
        (1e-2, "$\\uparrow$"),
        (1e-1, "x"),
    }
    bottom, top = axes.get_ylim()
    highest = 0.55 + math.sqrt(0.005)
    assert bottom < 0.45 - math.sqrt(0.005)
    assert highest < bottom + min(line.get_ydata()[0] for line in marks) * (top - bottom) < 1.0


def test_contenders_without_any_finite_loss_can_be_drawn(tmp_path) -> None:
    plots.save(compare(grid({1e-3: ["diverged"], 1e-2: ["failed"]})), tmp_path)


@pytest.mark.parametrize("contenders", [1, 40])
def test_the_legend_is_whole(contenders: int) -> None:
    drawn = compare([run(f"method {n}", seed=seed) for n in range(contenders) for seed in (0, 1)])
    figure = plots.learning_rate(drawn)
    figure.canvas.draw()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert (figure.get_figheight() > 5) == (contenders == 40)


@pytest.mark.parametrize(("worst", "scale"), [(10.0, "log"), (1.2, "linear")])
def test_a_wide_range_of_training_losses_is_logarithmic(worst: float, scale: str) -> None:
    drawn = comparison(curve=[[1, worst], [2, 1.0]])
    [axes] = plots.training_loss(drawn).axes
    assert axes.get_yscale() == scale


def test_accuracy_where_there_is_one_else_loss() -> None:
    general_loss = {"before": 1.0, "after": 1.5}
    figures = {"loss": 1.0, "accuracy": 0.75}
    [axes] = plots.forgetting(comparison(general_loss=general_loss, test=figures)).axes
    assert axes.get_ylabel() == "test accuracy (%)"
    assert axes.lines[0].get_ydata()[0] == 75.0
    [axes] = plots.forgetting(comparison(general_loss=general_loss)).axes
    assert axes.get_ylabel() == "test loss"
