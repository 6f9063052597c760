"""A grid of trainings: methods, learning rates and seeds, and the engines that carry them out."""
