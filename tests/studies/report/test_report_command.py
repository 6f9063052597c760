"""``sdslora report``: what it writes, and what it refuses."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from contrast import contrast
from made_runs import HOSTILE, LAYERS, diagnosed, history, measured, run
from matplotlib.image import imread

from sdslora.app.recording import KEYS
from sdslora.studies import report
from sdslora.studies.plotting import palette
from sdslora.studies.report import configuration, curves, measures, plots, summary
from sdslora.studies.report.heat_map import heat_map, rows, short_names
from sdslora.studies.report.page import page
from sdslora.studies.report.runs import read
from tiny import Run


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_page_pictures_and_numbers(sdslora: Run, tmp_path: Path) -> None:
    one = diagnosed(run(tmp_path / "one"), range(50, 101, 50))
    path = one / "diagnostics.jsonl"
    path.write_text(re.sub(r'"(gradient_rank|relative).*?, ', "", path.read_text()))  # is quicker
    two = run(tmp_path / "two", status="running", log_history=None)
    out = tmp_path / "out" / "report.html"
    result = sdslora("report", one, two, "--output", out)
    assert result.status == 0, result.err
    assert "note: two: incomplete: the run was killed" in result.out
    written = files(out.parent)
    text = written["report.html"].decode()
    assert "incomplete: the run was killed" in text

    stems = {"loss", "learning_rate"}
    for family in ("alignment", "stable_rank", "drift"):
        stems |= {f"mean_{family}", f"layers_{family}_1"}
    assert {name for name in written if name.startswith("figures/")} == {
        f"figures/{stem}.{kind}" for stem in stems for kind in ("png", "svg")
    }
    assert all(f'href="{name}"' in text for name in written if name != "report.html")
    assert text.count('href="figures/') == 2 * len(stems) + 1, "and the folder's own"
    assert imread(out.parent / "figures" / "loss.png").std() > 0

    log = pd.read_csv(out.parent / "numbers" / "log.csv")
    logged = [entry for entry in history(100) if "loss" in entry]
    assert log.loc[log["name"] == "loss", "value"].tolist() == [e["loss"] for e in logged]
    layers = pd.read_csv(out.parent / "numbers" / "diagnostics.csv")
    assert set(layers["run"]) == {"one"}
    found = layers.set_index(["step", "layer"])["alignment"]
    assert found[50, LAYERS[2]] == measured(50, 2)["alignment"]
    assert sorted(name for name in written if name.startswith("numbers/")) == [
        f"numbers/{name}.csv"
        for name in (
            "configuration",
            "diagnostics",
            "diagnostics_mean",
            "log",
            "schedule",
            "singular_values",
        )
    ]

    assert sdslora("report", one, two, "--output", out).status == 0
    assert files(out.parent) == written, "the same runs give the same bytes"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("page.txt", "must name a file that ends in .html"),
        ("new/report.html", "figures exists and is of no report report.html"),
    ],
)
def test_other_files_are_left_alone(
    output: str, message: str, sdslora: Run, tmp_path: Path
) -> None:
    mine = tmp_path / "new" / "figures" / "loss.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    result = sdslora("report", run(tmp_path / "r"), "--output", tmp_path / output)
    assert result.status == 2
    assert message in result.err
    assert files(tmp_path / "new") == {"figures/loss.png": b"mine"}


def test_it_goes_into_the_runs_folder(
    sdslora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    for said in ("report/report.html\n", "report/report.html, in place of the earlier one\n"):
        result = sdslora("report", one)
        assert result.status == 0, result.err
        assert result.out.endswith(said)
    assert (one / "report" / "figures" / "loss.png").is_file()
    assert sdslora("report", one, two).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "report"}

    before = files(tmp_path / "report")
    result = sdslora("report", two, run(tmp_path / "three"))
    assert (result.status, "is the report of other runs, one, two" in result.err) == (2, True)
    page_of_mine = tmp_path / "mine.html"
    page_of_mine.write_text("<title>mine</title>")
    result = sdslora("report", one, "--output", page_of_mine)
    assert (result.status, "exists and is no report" in result.err) == (2, True)
    assert files(tmp_path / "report") == before
    assert page_of_mine.read_text() == "<title>mine</title>"


def test_answers_before_and_after(tmp_path: Path) -> None:
    folder = run(tmp_path / "r")
    assert "First answers" not in page(read([folder]), [])
    for when, said in (("before", "No <idea>"), ("after", "12")):
        record = {"prompt": "5+7=", "expected": "12", "generated": said, "exact_match": False}
        (folder / f"generations-{when}.jsonl").write_text((json.dumps(record) + "\n") * 20)
    text = page(read([folder]), [])
    assert "No &lt;idea&gt;" in text
    (table,) = summary.answers(read([folder])).values()
    assert list(table.columns) == ["expected", "before training", "after training"]
    assert table.iloc[0].tolist() == ["12", "No <idea>", "12"]
    assert len(table) == 8
    captions = summary.answers(read([folder, run(tmp_path / "bare")]))
    assert list(captions) == ["First answers of r"]


def test_nothing_is_named_that_a_run_lacks(tmp_path: Path) -> None:
    logged = [entry for entry in history(100) if "eval_loss" not in entry]
    bare = read([run(tmp_path / "bare", log_history=logged)])
    chart = curves.loss(bare)
    assert "evaluation" not in chart.caption
    assert plots.loss(bare).axes[0].get_title(loc="left") == "Loss"
    silent = run(tmp_path / "silent", log_history=[])
    both = read([tmp_path / "bare", silent])
    assert curves.loss(both).legend == ["bare"]
    assert len(plots.loss(both).legends) == 0
    assert "evaluation" in curves.loss(read([run(tmp_path / "full")])).caption


def test_numbers_on_the_axes_are_plain(tmp_path: Path) -> None:
    runs = read([run(tmp_path / "r", log_history=history(100, peak=2e-5))])
    figure = plots.learning_rate(runs)
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert "0.00001" in {label.rstrip("0") for label in labels}
    assert not any("e" in label for label in labels)


def test_nothing_is_left_where_a_run_cannot_be_read(sdslora: Run, tmp_path: Path) -> None:
    result = sdslora("report", tmp_path / "nowhere", "--output", tmp_path / "out" / "r.html")
    assert result.status == 2
    assert (
        result.err == f"error: {tmp_path}/nowhere is no directory: give the output_dir of a run\n"
    )
    assert not (tmp_path / "out").exists()
    assert sdslora("report").status == 2


def test_an_error_while_drawing_leaves_the_earlier_report(
    sdslora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = run(tmp_path / "r"), tmp_path / "out" / "report.html"
    assert sdslora("report", folder, "--output", out).status == 0
    before = files(out.parent)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "learning_rate", fails)
    run(tmp_path / "r", log_history=history(50))
    assert sdslora("report", folder, "--output", out).status == 130
    assert files(out.parent) == before


def test_nothing_from_a_file_becomes_markup(tmp_path: Path) -> None:
    config = {HOSTILE: HOSTILE, "training": {"max_steps": 3}}
    folder = run(tmp_path / HOSTILE.replace("/", "|"), config=config, error=HOSTILE, status=HOSTILE)
    diagnosed(folder, layers=[HOSTILE])
    path = folder / "diagnostics.jsonl"
    path.write_text(path.read_text().replace('"alignment"', json.dumps(HOSTILE)))
    text = page(read([folder]), [])
    assert text.count("</script>") == 2
    assert "alert(2)" in text
    assert "<script>alert" not in text
    assert "<img" not in text.partition("</head>")[2]
    assert "<img" not in text[: text.index("<script>")]


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    folder = run(tmp_path / "r", status="running", log_history=None, metrics={})
    (folder / "diagnostics.jsonl").write_text('{"version": 1}\n{"st')
    text = page(read([folder]), [])
    assert "nothing was logged" in text
    assert "there is no chart" in text
    assert plots.all_of(read([folder])) == {}


def test_a_run_has_one_colour_in_all_charts(tmp_path: Path) -> None:
    """Where another run was not diagnosed."""
    runs = read([run(tmp_path / "bare"), diagnosed(run(tmp_path / "full"))])
    for chart in (curves.loss(runs), heat_map(runs)):
        marks = chart.spec["layer"][-1]["encoding"]["color"]["scale"]
        assert marks == {"domain": ["bare", "full"], "range": ["var(--run-0)", "var(--run-1)"]}


def test_losses_that_are_no_numbers_are_crossed(tmp_path: Path) -> None:
    logged = history(100)
    logged[3]["loss"] = math.nan
    runs = read([run(tmp_path / "r", log_history=logged)])
    text = page(runs, [])
    assert "Crosses: the loss is not a finite number." in text
    assert "points are drawn" not in text, "all are"
    assert "r,40,nan" in text
    assert "NaN" not in text.partition("<body>")[2]
    plots.loss(runs)


def test_what_differs_comes_first(tmp_path: Path) -> None:
    configs = [
        {"adapter": {"r": r, "target_modules": ["q", "v"], "options": {}}, "output_dir": str(r)}
        for r in (4, 8)
    ]
    runs = read([run(tmp_path / str(n), config=config) for n, config in enumerate(configs)])
    every = configuration.table(runs)
    assert every.index.tolist() == [
        "seed",
        "adapter.r",
        "adapter.target_modules",
        "adapter.options",
    ]
    assert every.loc["adapter.target_modules"].tolist() == ['["q", "v"]'] * 2
    assert configuration.differences(every).to_dict("index") == {"adapter.r": {"0": "4", "1": "8"}}
    text = page(runs, [])
    assert text.index("What differs") < text.index("Every key")
    assert "What differs" not in page(runs[:1], [])


def test_colours_have_contrast_and_differ() -> None:
    for colours, page_colour in ((palette.LIGHT, "ffffff"), (palette.DARK, "14181d")):
        assert f"--page: #{page_colour};" in (
            (Path(report.__file__).parent / "assets" / "page.css").read_text()
        )
        for colour in colours:
            assert contrast(bytes.fromhex(colour[1:]), bytes.fromhex(page_colour)) >= 3
    styles = [(palette.LIGHT[n % 6], palette.dash(n)) for n in range(18)]
    assert len(set(styles)) == 18


def test_whatever_is_recorded_has_a_title() -> None:
    titled = {key for family in measures.FAMILIES for key in family.measures}
    assert titled == set(KEYS) - {"singular_values"}


def test_measures_of_no_family_are_shown_too() -> None:
    titles = measures.titles(["unheard_of", "stable_rank_B", "alignment"])
    assert list(titles) == ["alignment", "stable_rank_B", "unheard_of"]
    assert titles["unheard_of"] == "unheard of"


def test_layers_of_a_kind_stand_together() -> None:
    names = [f"m.layers.{n}.{kind}" for n in (0, 1, 10) for kind in ("q", "v")]
    assert rows(pd.Series(names)) == names[::2] + names[1::2]
    assert short_names(names) == ["0.q", "0.v", "1.q", "1.v", "10.q", "10.v"]
    assert short_names(["a.b"]) == ["b"]
    assert short_names(["a", "a.b"]) == ["a", "a.b"]


@pytest.mark.filterwarnings("error:constrained_layout")
def test_one_record_is_a_dot_on_the_whole_time_axis(tmp_path: Path) -> None:
    runs = read([diagnosed(run(tmp_path / "run", steps=100), steps=range(50, 51))])
    for name, draw in plots.all_of(runs).items():
        figure = draw()
        figure.savefig(tmp_path / "picture.png")
        shown = [axes for axes in figure.axes if axes.get_xlabel()]
        assert all(axes.get_xlim() == (0, 100) for axes in shown), name
        if name.startswith("mean"):
            dots = [line for axes in shown for line in axes.lines if line.get_label() == "run"]
            assert dots
            assert all(dot.get_marker() == "." for dot in dots)
