"""Markdown of pages: tables and numbers."""

from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Return the value to three digits: ``0.313``, ``6.94e−9``."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        mantissa, power = f"{value:.2e}".split("e")
        return _minus(f"{mantissa}e{int(power)}")
    return _minus(f"{value:#.3g}".removesuffix("."))


def plus_minus(mean: float, spread: float, places: int = 2) -> str:
    """Return ``−1.98 ± 0.01``."""
    return f"{_minus(f'{mean:z.{places}f}')} ± {spread:.{places}f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
