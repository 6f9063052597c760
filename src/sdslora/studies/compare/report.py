"""A comparison as a report: sentences and tables, for the terminal and as Markdown."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from rich.table import Table
from rich.text import Text

from ..statistics.names import in_words
from ..statistics.numbers import NONE, UNITS, count, enumeration, general, mean_std, rate, share
from ..statistics.rates import Rate, at_rate
from ..statistics.sample import Sample
from ..statistics.statistics import HIGHER_IS_BETTER, Comparison, Contender, Metric
from ..statistics.trade_off import forgetting_at
from ..statistics.verdict import ALPHA
from . import sentences

_MIB = 2**20


@dataclass(frozen=True)
class _Grid:
    """A table as text; the first column names the row."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def markdown(comparison: Comparison) -> str:
    """Return the whole report as Markdown: the summary, and all tables."""
    lines = summary(comparison).splitlines()
    bullets = ["\n".join(f"- {_escape(line)}" for line in lines)] if lines else []
    parts = ["# Comparison", *bullets]
    for grid in _grids(comparison):
        parts += [f"## {grid.title}", _escape(grid.note), _pipes(grid)]
    return "\n\n".join(parts) + "\n"


def table(comparison: Comparison) -> list[Table]:
    """Return the tables for a terminal."""
    return [_rich(grid) for grid in _grids(comparison)]


def summary(comparison: Comparison) -> str:
    """Return one sentence a line: the verdict of each pair, then what weakens a result."""
    verdicts = [sentences.verdict(pair, comparison) for pair in comparison.pairs]
    cautions = [line for c in comparison.contenders for line in sentences.cautions(c)]
    return "\n".join([*verdicts, *cautions])


def _grids(comparison: Comparison) -> list[_Grid]:
    verdicts = [_verdicts(comparison)] if comparison.pairs else []
    grids = [_results(comparison), *verdicts, _tuning(comparison)]
    return [*grids, _rates(comparison), _costs(comparison)]


def _results(comparison: Comparison) -> _Grid:
    metrics = [m for m in UNITS if any(m in c.test for c in comparison.contenders)]
    names = [f"test {UNITS[metric].name}" for metric in metrics]
    reference = next(c for c in comparison.contenders if c.label == comparison.reference)
    level = reference.test.get(comparison.metric, Sample({})).mean
    return _Grid(
        "Results",
        "Each contender at its rate of lowest validation loss: mean ± standard deviation over "
        f"{_whose_seeds(comparison)}. Forgetting is the rise of the loss on general text; at the "
        f"same {UNITS[comparison.metric].name}: where the contender, its rate raised from the "
        f"lowest, first reaches the result of {reference.name}, interpolated between rates.",
        [
            "contender",
            "best rate",
            "seeds",
            *names,
            "forgetting",
            "at the same " + UNITS[comparison.metric].name,
        ],
        [
            [
                contender.name,
                _best(contender),
                str(len(contender.seeds)),
                *(mean_std(contender.test.get(metric), UNITS[metric]) for metric in metrics),
                mean_std(contender.forgetting),
                _forgetting_at(contender, comparison.metric, level),
            ]
            for contender in comparison.contenders
        ],
    )


def _forgetting_at(contender: Contender, metric: Metric, level: float) -> str:
    curve = contender.trade_off.get(metric, ())
    forgetting = forgetting_at(curve, level, HIGHER_IS_BETTER[metric])
    return NONE if forgetting is None else general(forgetting)


def _best(contender: Contender) -> str:
    return NONE if contender.best is None else rate(contender.best.learning_rate)


def _whose_seeds(comparison: Comparison) -> str:
    """Return the kind of seeds that the results are averaged over."""
    tuning_seeds = {
        seed
        for c in comparison.contenders
        for grid_rate in c.rates
        for seed in grid_rate.validation.by_seed
    }
    result_seeds = {seed for c in comparison.contenders for seed in c.seeds}
    return (
        "seeds"
        if result_seeds <= tuning_seeds
        else "fresh seeds, which had no part in choosing the rate"
    )


def _verdicts(comparison: Comparison) -> _Grid:
    unit = UNITS[comparison.metric]
    rows = []
    for pair in comparison.pairs:
        difference, p, seed_count = pair.difference, pair.adjusted_p, pair.seeds_needed
        rows.append(
            [
                in_words(pair.rival),
                *(sentences.difference(difference, unit) if difference else (NONE, NONE)),
                NONE if p is None else f"{p:.2g}",
                str(len(pair.reference_result.by_seed)),
                pair.verdict,
                NONE if seed_count is None else sentences.seeds(seed_count),
            ]
        )
    direction = "higher" if HIGHER_IS_BETTER[comparison.metric] else "lower"
    scale = " in percentage points" if unit.step else ""
    reference = in_words(comparison.reference)
    header = [f"{reference} against", "difference", "95% interval", "adjusted p"]
    return _Grid(
        "Verdicts",
        f"Test {unit.name} of {reference} less the rival's{scale}, paired over seeds; {direction} "
        "is better. A difference is shown where the bootstrap interval excludes 0 and the p-value "
        "of the paired t-test, adjusted after Holm for "
        f"{count(len(rows), 'rival')}, is below {ALPHA}. Seeds needed: for an 80% chance to show "
        "a difference as large as the one seen, beside as many rivals.",
        [*header, "common seeds", "verdict", "seeds needed"],
        rows,
    )


def _tuning(comparison: Comparison) -> _Grid:
    return _Grid(
        "Tolerance of the learning rate",
        "Rates within 5%: the range round the best rate where the validation loss exceeds the best "
        "by at most 5%; ≥ where the grid ends first. Regret: by how much the validation loss at "
        "the default rate exceeds the best.",
        ["contender", "best rate", "seeds", "rates within 5%", "default rate", "regret"],
        [
            [
                contender.name,
                _best(contender),
                str(len(contender.best.validation.by_seed) if contender.best else 0),
                _tolerance(contender),
                rate(contender.default_rate),
                NONE if contender.regret is None else share(contender.regret),
            ]
            for contender in comparison.contenders
        ],
    )


def _tolerance(contender: Contender) -> str:
    near = contender.tolerance
    if near is None:
        return NONE
    at_least = "≥ " if near.open_below or near.open_above else ""
    return f"{at_least}{near.octaves:.1f} octaves ({rate(near.lower)} to {rate(near.upper)})"


def _rates(comparison: Comparison) -> _Grid:
    return _Grid(
        "Every learning rate",
        "Validation loss, mean ± standard deviation over seeds.",
        ["contender", "learning rate", "validation loss", "seeds", "remarks"],
        [
            [
                contender.name,
                rate(grid_rate.learning_rate),
                mean_std(grid_rate.validation),
                str(len(grid_rate.validation.by_seed)),
                "; ".join(_remarks(grid_rate, contender)) or NONE,
            ]
            for contender in comparison.contenders
            for grid_rate in contender.rates
        ],
    )


def _remarks(grid_rate: Rate, contender: Contender) -> Iterable[str]:
    losses = grid_rate.validation.by_seed
    if grid_rate == contender.best:
        yield "best"
    if grid_rate == at_rate(contender.rates, contender.default_rate):
        yield "default"
    if grid_rate.diverged_seeds:
        rest = Sample({seed: loss for seed, loss in losses.items() if isfinite(loss)})
        others = f", the rest {mean_std(rest)}" if rest.by_seed else ""
        yield f"{len(grid_rate.diverged_seeds)} of {count(len(losses), 'seed')} diverged{others}"
    if grid_rate.failed_seeds:
        yield f"failed: {_seeds(grid_rate.failed_seeds)}"
    if not grid_rate.counts:
        yield f"incomplete: without {_seeds(grid_rate.missing_seeds or grid_rate.failed_seeds)}"


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {enumeration([str(seed) for seed in seeds])}"


def _costs(comparison: Comparison) -> _Grid:
    baseline = comparison.baseline
    rows = []
    for contender in comparison.contenders:
        size = contender.trainable_parameters
        rows.append(
            [
                contender.name,
                _relative(contender.seconds, baseline.seconds),
                _relative(contender.peak_bytes, baseline.peak_bytes),
                NONE if size is None else f"{size:,}",
                str(contender.runs),
                str(contender.diverged_runs),
                str(contender.failed_runs),
            ]
        )
    return _Grid(
        "Costs",
        "Mean time and highest memory of the finished runs, relative to "
        f"{baseline.name}{_absolute(baseline)}.",
        ["contender", "time", "memory", "trained parameters", "runs", "diverged", "failed"],
        rows,
    )


def _relative(value: float | None, baseline: float | None) -> str:
    return f"{value / baseline:.2f}×" if value is not None and baseline else NONE


def _absolute(baseline: Contender) -> str:
    figures = []
    if baseline.seconds is not None:
        figures.append(f"{baseline.seconds:,.1f} s")
    if baseline.peak_bytes is not None:
        figures.append(f"{baseline.peak_bytes / _MIB:,.0f} MiB")
    return f" ({', '.join(figures)})" if figures else ""


def _pipes(grid: _Grid) -> str:
    rule = ["---", *["---:"] * (len(grid.header) - 1)]
    header, *rows = ([_escape(cell) for cell in cells] for cells in [grid.header, *grid.rows])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def _escape(text: str) -> str:
    """Return the text so that Markdown shows it unchanged, in a table's cell too."""
    for special in "\\|*_`<[":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def _rich(grid: _Grid) -> Table:
    rich_table = Table(
        title=grid.title, caption=grid.note, caption_justify="left", title_justify="left"
    )
    for at, name in enumerate(grid.header):
        rich_table.add_column(Text(name), justify="right" if at else "left")
    for row in grid.rows:
        rich_table.add_row(*map(Text, row))
    return rich_table
