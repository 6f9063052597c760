"""The colours of runs, told apart by colour-blind readers, each with a contrast of 3:1 or more.

After Okabe and Ito's palette, darkened for a light page and lightened for a dark one.
"""

LIGHT = ("#0072b2", "#c2500a", "#00805e", "#a0448e", "#8a6a00", "#5f6670")
DARK = ("#5ab4f0", "#ff9d5c", "#35c89a", "#e894d2", "#e0bf45", "#b4bac4")
# Runs beyond the sixth repeat the colours with another dash.
DASHES = ((1, 0), (6, 3), (2, 2))


def dash(run: int) -> tuple[int, int]:
    """Return the lengths of the strokes and gaps of a run's lines."""
    return DASHES[run // len(LIGHT) % len(DASHES)]
