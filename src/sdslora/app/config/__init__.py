"""The specification behind a recipe, and its parsing."""
