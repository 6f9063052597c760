"""Runs shown on one page, with pictures and numbers beside it.

The page is one file that asks no server for anything. Vega-Lite draws it, whose whole bundle is
0.9 MB (plotly's is 4.8 MB).
"""

from .command import command, report

__all__ = ["command", "report"]
