"""The paper's figures and theorems, reproduced: one entry of :mod:`.catalogue` each.

A target measures, draws, describes and writes. The figures are drawn from the same trainings
(:mod:`.figures.trainings`), the theorems from synthetic problems.
"""

from .command import command

__all__ = ["command"]
