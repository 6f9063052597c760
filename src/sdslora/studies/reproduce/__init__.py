"""Reproduce the paper's figures, theorems and tables.

A target measures, draws, describes and writes. :mod:`.catalogue` lists the figures, which share
their trainings (:mod:`.figures.trainings`), and the theorems, which have synthetic problems.
"""
