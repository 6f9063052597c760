"""Statistics over seeds and learning rates, and how their numbers are written."""
