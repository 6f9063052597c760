"""Checks of a configuration's values: types, patterns, tokens."""
