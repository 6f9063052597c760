"""The paper's figures and theorems, made anew: one entry of :mod:`.targets` each.

A target measures, draws and describes; :mod:`.results` writes what it found. The figures are drawn
from the same trainings (:mod:`.trainings`), the theorems from synthetic problems.
"""

from .command import command

__all__ = ["command"]
