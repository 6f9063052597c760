"""Functions that keep tokens and passwords out of all files and messages."""

import os
import re
from collections.abc import Mapping

_KEYS = {"token", "use_auth_token", "api_key", "password", "secret"}
"""Keys of options that hold a secret; ``hub_token`` and its like are masked by Transformers."""
_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "COMET_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
)
_SHORTEST = 8  # characters: a shorter value may stand in any text
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # of the Hugging Face Hub
_MASK = "<secret>"


def mask_secrets(text: str) -> str:
    """Return ``text`` without tokens of the Hub and without secrets from the environment."""
    for variable in _VARIABLES:
        value = os.environ.get(variable, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, _MASK)
    return _TOKEN.sub(_MASK, text)


def without_secrets(tree: object) -> object:
    """Return nested options without the keys that hold secrets.

    The keys are left out, not masked, so that the options can be used again.
    """
    if isinstance(tree, Mapping):
        return {k: without_secrets(v) for k, v in tree.items() if k not in _KEYS}
    return [without_secrets(v) for v in tree] if isinstance(tree, list | tuple) else tree
