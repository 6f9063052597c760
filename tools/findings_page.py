"""Fill the tables of docs/findings.md and of the pages in docs/findings.

A page names its tables by markers, ``<!-- small-vision -->`` and ``<!-- end small-vision -->``.
A name is one of :data:`TABLES`, or a comparison: a folder of docs/results with the report.md that
``sdslora compare`` wrote. The summary has a row for every page, in the order of mkdocs.yml: the
page's title, and the paragraph that begins with "In short".
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from math import inf, isfinite, log2, nan
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import numpy as np

from keep_comparison import kept_runs
from page import main_of, table
from sdslora.studies.statistics import statistics
from sdslora.studies.statistics.names import in_words
from sdslora.studies.statistics.numbers import fixed_point, mean_std, rate
from sdslora.studies.statistics.sample import Sample
from sdslora.studies.statistics.statistics import Contender
from sdslora.studies.statistics.verdict import against_rivals

ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "docs" / "findings.md"
PAGES = SUMMARY.with_suffix("")
RESULTS = ROOT / "docs" / "results"
STUDIES = ROOT / "recipes" / "studies"
TASKS = ["small-vision", "small-language"]
WARMED = {task: f"{task}-warmup" for task in TASKS}
"""The same with a warm-up of the learning rate."""
OURS = "sds-lora refresh_mode=preserve refresh_every=1 transport_momentum=True"
TUNED = "sds-lora refresh_every=1 transport_momentum=True ramp_steps=20"
"""What ``preset="tuned"`` stands for."""
MULTIPLIED = OURS.replace("sds-lora", "sds-lora-multiplied")
SHORT = "**In short.**"
NOT_YET = "Not run to its end yet."


def sections(report: str) -> dict[str, dict[str, dict[str, str]]]:
    """Every table of a report: by its heading, then by the first cell of a row, then by column."""
    found = {}
    for section in report.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if "|" in line]
        if cells:
            header, _, *rows = cells
            found[title] = {
                escaped(row[0].replace("\\", "")): dict(zip(header, row, strict=True))
                for row in rows
            }
    return found


def results(name: str) -> dict[str, dict[str, str]]:
    """The first table of a comparison's report, by contender."""
    return sections((RESULTS / name / "report.md").read_text())["Results"]


def at_best(result: dict[str, str]) -> str:
    """A test loss, its learning rate in brackets."""
    return f"{result['test loss']} ({result['best rate']})"


@cache
def contenders_of(name: str) -> Sequence[Contender]:
    """What a comparison's runs give; nothing where it has not run to its end."""
    runs = kept_runs(name)
    return statistics.compare(runs).contenders if runs else ()


def escaped(label: str) -> str:
    """The contender's name in words, as the reports write it."""
    return in_words(label).replace("_", r"\_")


def comparison(name: str) -> str:
    """One line a contender: its result, the verdict on it, its tolerance of the learning rate."""
    report = RESULTS / name / "report.md"
    if not report.exists():
        if not (STUDIES / f"{name}.yaml").exists():
            raise SystemExit(f"there is neither a table nor a comparison called {name}")
        return NOT_YET
    tables = sections(report.read_text())
    verdicts = tables.get("Verdicts", {})  # of a single contender there is none
    tolerances = tables["Tolerance of the learning rate"]
    rows = []
    for contender, result in tables["Results"].items():
        verdict = verdicts.get(contender, {})
        tolerance = tolerances[contender]
        difference = f"{verdict['difference']} ({verdict['95% interval']})" if verdict else "–"
        rows.append(
            [
                contender,
                result["test loss"],
                result["seeds"],
                difference,
                verdict.get("verdict", "–"),
                result["best rate"],
                tolerance["rates within 5%"].partition(" (")[0],
                f"{tolerance['regret']} at {tolerance['default rate']}",
            ]
        )
    header = ["contender", "test loss", "seeds", "difference (95% interval)", "the reference is"]
    header += ["best rate", "rates within 5%", "regret"]
    return (
        f"{table(header, rows)}\n\n[Everything](../results/{name}/report.md), every rate and run."
    )


def warm_up() -> str:
    """One line a contender: each task's test loss without and with a warm-up of the rate."""
    found = {name: results(name) for pair in WARMED.items() for name in pair}
    common = [c for c in found[TASKS[0]] if all(c in those for those in found.values())]
    header = ["contender"]
    for task in TASKS:
        header += [task.replace("-", " "), "with warm-up"]
    return table(header, [[c, *(found[n][c]["test loss"] for n in found)] for c in common])


def either_schedule(
    sources: Sequence[tuple[str, str]], ours: str = OURS, variants: Sequence[str] = ()
) -> str:
    """Ours against every method, each with or without the warm-up.

    Chosen like the learning rate: by the lower validation loss.

    Args:
        sources: the schedule and the name of each comparison of one task that they are from.
        ours: the label of what is set against the others.
        variants: of methods, by label, that are set beside them.
    """
    chosen: dict[str, tuple[float, str, Contender]] = {}
    wanted = {OURS, ours, *variants}
    for schedule, name in sources:
        contenders = contenders_of(name)
        if not contenders:
            return NOT_YET
        for contender in contenders:
            if contender.best is not None and contender.label in {*wanted, contender.method}:
                loss = contender.best.validation.mean
                if contender.label not in chosen or loss < chosen[contender.label][0]:
                    chosen[contender.label] = loss, schedule, contender
    losses = {label: contender.test["loss"] for label, (_, _, contender) in chosen.items()}
    pairs = {pair.rival: pair for pair in against_rivals(ours, losses, False)}
    rows = []
    for label, (_, schedule, contender) in sorted(chosen.items(), key=lambda c: c[1][0]):
        row = [escaped(label), schedule, rate(contender.best.learning_rate)]
        row.append(mean_std(losses[label]))
        if label in pairs:
            pair = pairs[label]
            found = pair.difference
            mean, low, high = (fixed_point(v, 3) for v in (found.mean, *found.interval))
            row += [f"{mean} ({low} to {high})", f"{pair.adjusted_p:.1g}", pair.verdict]
        else:
            row += ["–"] * 3
        rows.append(row)
    header = ["contender", "warm-up", "rate", "test loss", "ours less it (95% interval)"]
    return table([*header, "adjusted p", "ours is"], rows)


def both_schedules(task: str, suffix: str = "") -> list[tuple[str, str]]:
    """Sources for :func:`either_schedule`; the suffix ``-fresh`` is for those with fresh seeds."""
    return [("without", f"{task}{suffix}"), ("with", f"{WARMED[task]}{suffix}")]


def refreshes() -> str:
    """One line a way to refresh: each task's test loss, the best rate in brackets; warmed up."""
    found = [results(WARMED[task]) for task in TASKS]
    rows = []
    for mode, every, carried in product(
        ("", "refresh_mode=preserve"), ("", "refresh_every=1"), ("", "transport_momentum=True")
    ):
        label = escaped(" ".join(filter(None, ("sds-lora", mode, every, carried))))
        rows.append(
            [
                "`preserve`" if mode else "`qr`",
                "every step" if every else "by phases",
                "carried over" if carried else "left",
                *(at_best(those[label]) for those in found),
            ]
        )
    header = ["refresh", "when", "momentum", *(task.replace("-", " ") for task in TASKS)]
    return table(header, rows)


def ramps() -> str:
    """One line a task, refresh and ramp: the validation loss at each learning rate."""
    found: dict[tuple[str, str], dict[float, Sample]] = {}
    for task in TASKS:
        for contender in contenders_of(f"{task}-ramp"):
            options = contender.label.replace(
                "sds-lora refresh_every=1 ", "sds-lora refresh_mode=qr "
            )
            words = dict(word.split("=") for word in options.split()[1:])
            name = f"`{words['refresh_mode']}`, {words.get('ramp_steps', 'none')}"
            found[task.replace("-", " "), name] = {
                r.learning_rate: r.validation for r in contender.rates
            }
    if not found:
        return NOT_YET
    rates = sorted(set().union(*found.values()))
    rows = [[*name, *(mean_std(losses.get(x)) for x in rates)] for name, losses in found.items()]
    return table(["task", "refresh, ramp", *map(rate, rates)], rows)


def side_by_side(change: str) -> str:
    """One line a contender: each task's test loss, the best rate in brackets."""
    names = [f"{task}-{change}" for task in TASKS]
    if not all((RESULTS / name).exists() for name in names):
        return NOT_YET
    found = [results(name) for name in names]
    rows = [[label, *(at_best(those[label]) for those in found)] for label in found[0]]
    return table(["contender", *(task.replace("-", " ") for task in TASKS)], rows)


def steps() -> str:
    """One line a length of the step: the validation loss of each method, on each task."""
    found: dict[str, dict[float, Sample]] = {}
    for task in TASKS:
        contenders = contenders_of(f"{task}-steps")
        if not contenders:
            return NOT_YET
        for contender in contenders:
            of_rates = {each.learning_rate: each.validation for each in contender.rates}
            found[f"{task.replace('-', ' ')}, {contender.name}"] = of_rates
    lengths = sorted(set().union(*found.values()))
    rows = [[rate(x), *(mean_std(losses.get(x)) for losses in found.values())] for x in lengths]
    return table(["length", *found], rows)


def one_rate() -> str:
    """One line a method: the one setting for both tasks, and by how much it misses the best ones.

    The rate and the schedule of the lowest geometric mean over the tasks. Between two rates of a
    grid the validation loss is taken as linear in the rate's logarithm.
    """
    settings = defaultdict(list)
    best = defaultdict(lambda: [inf] * len(TASKS))
    warmed = [(WARMED[task], f"{task}-multiplied") for task in TASKS]
    for schedule, sources in (("without", [(task,) for task in TASKS]), ("with", warmed)):
        of_tasks = [
            {c.label: c for name in names for c in contenders_of(name)} for names in sources
        ]
        for label in (each for each in of_tasks[0] if each in of_tasks[1]):
            if label in {OURS, MULTIPLIED, of_tasks[0][label].method}:
                tuned = [each[label].best.validation.mean for each in of_tasks]
                best[label] = [*map(min, best[label], tuned)]
                curves = [_validation(each[label]) for each in of_tasks]
                settings[label] += [
                    (geometric_mean(losses), schedule, x, losses)
                    for x, *losses in zip(_OCTAVES, *curves, strict=True)
                    if all(map(isfinite, losses))
                ]
    rows = []
    for label, tried in sorted(settings.items(), key=lambda each: min(each[1])):
        _, schedule, x, losses = min(tried)
        cells = [
            f"{loss:#.3g} (+{loss / lowest - 1:.0%})"
            for loss, lowest in zip(losses, best[label], strict=True)
        ]
        rows.append([escaped(label), schedule, rate(2**x), *cells])
    header = ["contender", "warm-up", "rate", *(task.replace("-", " ") for task in TASKS)]
    return table(header, rows)


_OCTAVES = np.log2(1e-3) + np.arange(-3, 11, 1 / 16)
"""Rates that are tried as the one for all, as powers of two; the measured ones are among them."""


def _validation(contender: Contender) -> list[float]:
    """The mean validation loss at each of :data:`_OCTAVES`; not a number outside the grid."""
    counted = [each for each in contender.rates if each.counts]
    octaves = [log2(each.learning_rate) for each in counted]
    losses = [each.validation.mean for each in counted]
    found: list[float] = np.interp(_OCTAVES, octaves, losses, nan, nan).tolist()
    return found


def measured(figure: str) -> dict[str, Any]:
    """The numbers of one of the paper's figures."""
    found: dict[str, Any] = json.loads((RESULTS / f"figures/{figure}/{figure}.json").read_text())
    return found["measured"]


def claims() -> str:
    """What the paper's figures measure, and the loss, of the same trainings."""
    ranks, alignment, losses = measured("fig1a"), measured("fig3b"), measured("fig3a")

    def mean(figure: dict[str, Any], method: str, key: str) -> str:
        """Over the layers, and over the steps of the second half."""
        if method not in figure["methods"]:
            return "–"
        found = figure["methods"][method][key]
        late = zip(found["step"], found["mean"], strict=True)
        return f"{fmean(value for step, value in late if step >= losses['steps'] // 2):#.3g}"

    rows = [
        [
            method,
            mean(ranks, method, "gradient_rank_A"),
            mean(ranks, method, "gradient_rank_B"),
            mean(alignment, method, "alignment"),
            mean(alignment, method, "alignment_applied"),
            f"{found['test'][0]:#.3g}",
        ]
        for method, found in losses["methods"].items()
    ]
    header = ["method", "effective rank of ∇A", "of ∇B", "alignment, raw", "applied"]
    return table([*header, "held-out loss"], rows)


def headline() -> str:
    """One line a place of :data:`HEADLINES`: the test loss of the preset and of each rival."""
    lines = []
    for task, ours, *names in HEADLINES:
        contenders = {c.label: c for name in names for c in contenders_of(name)}
        losses = {label: c.test["loss"] for label, c in contenders.items() if c.label in RIVALS}
        losses[ours] = contenders[ours].test["loss"]
        verdicts = {pair.rival: pair.verdict for pair in against_rivals(ours, losses, False)}
        rivals = [f"{in_words(r)} {mean_std(losses[r])} ({v})" for r, v in verdicts.items()]
        seeds = len(losses[ours].values)
        lines.append(f"- {task}, {seeds} seeds: {mean_std(losses[ours])}; {', '.join(rivals)}.")
    return "\n".join(lines)


HEADLINES = [
    ("Small vision", TUNED, "small-vision-default", "small-vision-default-full"),
    ("Small language", TUNED, "small-language-default"),
    ("Small language", "sds-lora preset=tuned", "small-language-confirm"),
    ("Small language, another base model", "sds-lora preset=tuned", "small-language-again"),
]
"""Where ``preset="tuned"`` ran: the task, the preset's label there, and the comparisons."""
RIVALS = ("lora+", "rslora", "full")


def verdicts() -> str:
    """One line a page of docs/findings, in the order of mkdocs.yml: its title and its verdict."""
    rows = []
    for name in re.findall(r": findings/([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M):
        title, short, *_ = (PAGES / name).read_text().removeprefix("# ").split("\n\n")
        if not short.startswith(SHORT):
            raise SystemExit(f"the first paragraph of {name} must begin with {SHORT}")
        text = " ".join(short.removeprefix(SHORT).split())
        text = text.replace("](../findings.md#", "](#").replace("](../", "](")
        rows.append([f"[{title}](findings/{name})", text])
    return table(["question", "verdict"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "verdicts": verdicts,
    "claims": claims,
    "warm-up": warm_up,
    "refreshes": refreshes,
    "steps": steps,
    "ramps": ramps,
    "one-rate": one_rate,
    **{
        name: partial(side_by_side, name) for name in ("core", "variants", "multiplied", "patterns")
    },
    **{
        f"{task}-default": partial(
            either_schedule,
            [("without", f"{task}-default"), ("with", f"{task}-default-warmed")],
            TUNED,
            [TUNED.replace("ramp_steps=20", "ramp_steps=10")],
        )
        for task in TASKS
    },
    **{f"{t}-either": partial(either_schedule, both_schedules(t)) for t in TASKS},
    **{f"{t}-fresh": partial(either_schedule, both_schedules(t, "-fresh")) for t in TASKS},
    **{
        f"{task}-multiplied-fresh": partial(
            either_schedule,
            [*both_schedules(task, "-fresh"), ("with", f"{task}-multiplied-fresh")],
            MULTIPLIED,
        )
        for task in TASKS
    },
    "smollm2-multiplied-all": partial(
        either_schedule,
        [("with", "smollm2-chain-sum"), ("with", "smollm2-multiplied")],
        MULTIPLIED,
        ["sds-lora update=muon", "rslora update=muon"],
    ),
}
"""Tables that are not those of one comparison, by the name of their place."""


def texts(page: Path) -> dict[str, str]:
    """The tables that the page has a place for."""
    names = re.findall(r"<!-- end (\S+) -->", page.read_text())
    return {name: TABLES.get(name, partial(comparison, name))() for name in names}


if __name__ == "__main__":
    main_of({page: texts(page) for page in [*sorted(PAGES.glob("*.md")), SUMMARY]}, __doc__)
