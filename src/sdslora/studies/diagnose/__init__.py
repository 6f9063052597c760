"""Diagnosis of a LoRA adapter: are its singular values skewed, and would SDS-LoRA see more?"""

from .command import DiagnoseSpec, command, diagnose

__all__ = ["DiagnoseSpec", "command", "diagnose"]
