"""The paper's figures, one a module."""
