"""What the report says, and that it leaves nothing out."""

import io
import math

import pytest
from made_up import at_one_rate, grid, run, stopped
from rich.console import Console

from sdslora.studies.compare import report
from sdslora.studies.statistics.numbers import (
    UNITS,
    decimals,
    enumeration,
    fixed_point,
    general,
    mean_std,
    rate,
    share,
)
from sdslora.studies.statistics.sample import Sample
from sdslora.studies.statistics.statistics import compare

OURS = "SDS-LoRA (paper)"
LOW, HIGH = [1.0, 1.1, 0.9, 1.05], [2.0, 2.2, 1.9, 2.1]


def summary(*runs, metric: str = "loss") -> str:
    return report.summary(compare([record for group in runs for record in group], metric=metric))


def test_numbers() -> None:
    assert mean_std(Sample({0: 0.30, 1: 0.36})) == "0.330 ± 0.042"
    assert mean_std(Sample({0: 120.0, 1: 150.0})) == "135 ± 21"
    assert mean_std(Sample({0: 1.23456})) == "1.235"
    assert mean_std(Sample({0: 2e-6, 1: 4e-6})) == "0.0000030 ± 0.0000014"
    assert mean_std(Sample({0: 0.5, 1: 0.52}), UNITS["accuracy"]) == "51.0 ± 1.4%"
    assert mean_std(Sample({0: 1.0, 1: math.inf})) == "∞"
    assert mean_std(Sample({})) == mean_std(None) == "–"
    assert [decimals(x) for x in (0.04, 0.4, 4.0, 40.0, 0.0, math.nan)] == [3, 2, 1, 0, 4, 4]
    assert [fixed_point(-0.0004, 3), fixed_point(-0.04, 3)] == ["0.000", "−0.040"]
    assert [rate(x) for x in (2e-4, 3.16e-5, 1.0, 0.003)] == ["2e-4", "3.2e-5", "1e0", "3e-3"]
    assert [share(0.031), share(0.0), share(math.inf)] == ["+3.1%", "+0.0%", "diverged"]
    assert general(-1.5) == "−1.5"
    assert [enumeration(list(x)) for x in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_difference_that_is_not_shown() -> None:
    ours, theirs = [0.30, 0.36, 0.33], [0.31, 0.33, 0.37]
    text = summary(at_one_rate("sds-lora", ours), at_one_rate("rslora", theirs)).splitlines()[0]
    assert text.startswith(
        "SDS-LoRA (paper) against rsLoRA: no difference shown (test loss 0.330 ± 0.030 against "
        "0.337 ± 0.031; difference −0.007, 95% interval −0.0"
    )
    assert "; adjusted p 0.77; 3 seeds; about " in text
    assert text.endswith(" seeds would be needed).")


def test_a_difference_that_is_shown() -> None:
    text = summary(at_one_rate("sds-lora", LOW), at_one_rate("lora", HIGH)).splitlines()[0]
    assert text.startswith(
        "SDS-LoRA (paper) against LoRA: better (test loss 1.012 ± 0.085 against 2.05 ± 0.13; "
    )
    assert text.endswith("; adjusted p 2.7e-05; 4 seeds).")


def test_accuracy_in_percent_and_points() -> None:
    ours, theirs = at_one_rate("sds-lora", [0.5, 0.52], "accuracy"), [0.5, 0.5]
    text = summary(ours, at_one_rate("lora", theirs, "accuracy"), metric="accuracy")
    assert "test accuracy 51.0 ± 1.4% against 50 ± 0%" in text
    assert "difference 1.0 points, 95% interval 0.0 to 2.0" in text


def test_more_seeds_than_anyone_runs() -> None:
    text = summary(at_one_rate("sds-lora", LOW), at_one_rate("lora", LOW))
    assert "more than 1,000 seeds would be needed" in text


def test_withheld_verdicts_say_why() -> None:
    one = summary(at_one_rate("sds-lora", [0.5]), at_one_rate("lora", [0.25]))
    assert (
        "SDS-LoRA (paper) against LoRA: verdict withheld (test loss 0.5 against 0.25; 1 common "
        "seed, at least 2 are needed)." in one
    )
    none = summary(at_one_rate("sds-lora", [0.5]), [run("lora", seed=3)])
    assert "verdict withheld (0 common seeds, at least 2 are needed)" in none
    lost = summary(at_one_rate("sds-lora", LOW), [stopped("diverged", "lora", seed=0)])
    assert "verdict withheld (LoRA finished at no rate with every seed)" in lost
    assert "LoRA has no result: at no rate did every seed finish with a finite loss." in lost
    undefined = summary(at_one_rate("sds-lora", LOW), at_one_rate("lora", [*LOW[:3], math.nan]))
    assert "not finite)." in undefined


def test_cautions() -> None:
    lowest = grid({1e-4: [1.0, 1.0], 1e-3: [2.0, 2.0]}, "a")
    highest = grid({1e-4: [2.0, 2.0], 1e-3: [1.0, 1.0], 1e-2: [0.5, "failed"]}, "b")
    closed = grid({1e-4: [2.0, 2.0], 1e-3: [1.0, 1.0], 1e-2: ["diverged", "diverged"]}, "c")
    lines = summary(lowest, highest, closed, at_one_rate("d", LOW)).splitlines()[3:]
    assert lines == [
        "a's best rate, 1e-4, is the lowest of its grid: a better one may lie beyond.",
        "b's best rate, 1e-3, is the highest of its grid: a better one may lie beyond.",
        "b: 1 of 6 runs failed.",
        "b: seeds are missing at 1e-2, which could not be chosen.",
        "c: 2 of 6 runs diverged.",
        "d stands at 1e-3, its only rate: it is not tuned.",
    ]


@pytest.fixture
def full():
    """Three contenders over a grid, with what can go wrong."""
    runs = grid({1e-4: [0.61, 0.65], 1e-3: [0.41, 0.45], 1e-2: [0.52, "diverged"]}, "sds-lora")
    runs += grid({1e-4: [0.71, 0.75], 1e-3: [0.51, 0.55], 1e-2: [0.83, "failed"]}, "lora")
    runs += grid({1e-3: [0.42, 0.44]}, "odd|label [bold]_x_")
    general_loss = {"before": 2.0, "after": 2.25}
    for record in runs:
        record["general_loss"] = general_loss
        record["peak_bytes"] = 2**30
        if record["label"] == "sds-lora":
            record |= {"seconds": 15.0, "peak_bytes": 2**29}
    return compare(runs)


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of a Markdown report that begin with ``first``."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_rate_of_every_contender_is_in_the_report(full) -> None:
    text = report.markdown(full).split("## Every learning rate")[1]
    tried = [row for row in cells(text, OURS) + cells(text, "LoRA") if len(row) == 5]
    assert tried == [
        [OURS, "1e-4", "0.630 ± 0.028", "2", "–"],
        [OURS, "1e-3", "0.430 ± 0.028", "2", "best; default"],
        [OURS, "1e-2", "∞", "2", "1 of 2 seeds diverged, the rest 0.52"],
        ["LoRA", "1e-4", "0.730 ± 0.028", "2", "–"],
        ["LoRA", "1e-3", "0.530 ± 0.028", "2", "best; default"],
        ["LoRA", "1e-2", "0.83", "1", "failed: seed 1; incomplete: without seed 1"],
    ]


def test_costs_are_relative_to_lora(full) -> None:
    text = report.markdown(full)
    assert "relative to LoRA (10.0 s, 1,024 MiB)" in text
    assert [OURS, "1.50×", "0.50×", "1,000", "6", "1", "0"] in cells(text, OURS)
    assert ["LoRA", "1.00×", "1.00×", "1,000", "6", "0", "1"] in cells(text, "LoRA")


def test_forgetting_is_the_rise_of_the_loss(full) -> None:
    assert cells(report.markdown(full), OURS)[0][-2:] == ["0.25 ± 0", "0.25"]


def test_tables_of_markdown_are_even(full) -> None:
    text = report.markdown(full).replace("\\|", "")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")
    assert "odd\\|label \\[bold]\\_x\\_" in report.markdown(full)


def test_terminal_shows_the_same_cells(full) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    for drawn in report.table(full):
        console.print(drawn)
    shown = stream.getvalue()
    assert "odd|label [bold]_x_" in shown
    for words in (
        "1 of 2 seeds diverged, the rest 0.52",
        "0.430 ± 0.028",
        "1.50×",
        "no difference",
    ):
        assert words in shown


def test_of_one_contender_there_are_no_verdicts() -> None:
    runs = grid({1e-4: [3.0, 3.0], 1e-3: [1.0, 1.0], 1e-2: [2.0, 2.0]})
    text = report.markdown(compare(runs))
    assert text.startswith("# Comparison\n\n## Results\n\n")
    assert "Verdicts" not in text
    assert "## Verdicts" in report.markdown(compare(runs + at_one_rate("other", [1.0, 2.0])))
