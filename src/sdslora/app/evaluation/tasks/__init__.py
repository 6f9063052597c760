"""The paper's tasks, as task files of lm-evaluation-harness: this folder is an ``--include_path``.

Each task's protocol is in its YAML; prompts, filters and scores are functions of the module that
the YAML names.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent
PREFIX = "sdslora_"
COMMONSENSE = (
    "boolq",
    "piqa",
    "siqa",
    "hellaswag",
    "winogrande",
    "arc_challenge",
    "arc_easy",
    "openbookqa",
)
TASKS = (*COMMONSENSE, "gsm8k", "gsm8k_lora_ga", "math", "humaneval")
CODE = ("humaneval",)  # those that run what the model has written
GROUPS = {"commonsense": COMMONSENSE}
TaskFigures = dict[str, int | dict[str, float]]
"""The figures of a task: ``rows``, and the scores by rule, which is one way to read an answer.

Scores are shares of the rows; ``no_answer`` is a number of rows.
"""
