"""The paper's theorems, one a module."""
