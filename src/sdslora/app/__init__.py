"""The work of the commands: specification, data, models, training, evaluation.

- :mod:`.commands`: one file a command: parse, call, print
- :mod:`.config`: the typed specification, and its parsing from YAML and the command line
- :mod:`.data`: rows, templates, splits, tokenization, image sources
- :mod:`.models`: base models and adapters, loaded and saved
- :mod:`.run`: one training: plan, dry run, trainer, checkpoints, record, memory
- :mod:`.evaluation`: loss, generation, scoring, the paper's tasks, the sandbox
- :mod:`.recording`: diagnostics recorded while a model trains
- :mod:`.bench`: small models pretrained on the spot, and tasks shifted from theirs
"""

from typing import Any

Json = Any
"""A value of a JSON or YAML file. A union of its types would need a check before every use.

Files of a fixed form have a ``TypedDict`` beside the code that writes them.
"""
