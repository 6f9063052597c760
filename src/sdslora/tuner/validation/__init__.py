"""Checks of what a configuration holds: types, patterns, tokens."""
