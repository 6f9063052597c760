"""Loss, generation, scoring, the paper's tasks and the sandbox."""
