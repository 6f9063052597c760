"""What a recipe may hold, and how it is read."""
