"""Runs shown on one page, with pictures and numbers beside it.

The page is one file that needs no server. Vega-Lite draws it: its whole bundle has 0.9 MB
(plotly's has 4.8 MB).
"""
