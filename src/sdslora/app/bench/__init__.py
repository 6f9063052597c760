"""A bench whose runs take seconds: models pretrained here, and tasks shifted from theirs.

Names begin with ``bench:``. ``tiny-lm`` is a language model of characters, pretrained on a family
of tasks. ``cipher`` is a task that it has never seen, ``family`` holds unseen rows of its own
tasks. ``digits-vit`` classifies upright digits; :func:`.digits.load` turns, inverts and relabels
them.

Each is built at its first use (:mod:`..cache`).
"""

from collections.abc import Callable
from pathlib import Path

from ..cache import Recipe, path_of
from ..errors import UserError, nearest
from .cipher import Cipher
from .digits_vit import DigitsVit
from .family import Family
from .tiny_lm import TinyLm

PREFIX = "bench:"
_RECIPES: dict[str, Callable[[], Recipe]] = {
    f"{PREFIX}{recipe.name}": recipe for recipe in (TinyLm, Cipher, Family, DigitsVit)
}


def resolve(name: str) -> Path:
    """Return the path of a model or data set, built in minutes at its first use.

    Args:
        name: ``bench:tiny-lm`` (for ``AutoModelForCausalLM`` and ``AutoTokenizer``),
            ``bench:digits-vit`` (for ``AutoModelForImageClassification``), ``bench:cipher`` (a
            .json file of objects with ``question`` and ``answer``) or ``bench:family`` (with
            ``text``).

    Raises:
        UserError: for another name, naming the nearest; where a package is missing.
    """
    if name not in _RECIPES:
        raise UserError(f"the bench has no `{name}`{nearest(name, _RECIPES)}")
    return path_of(_RECIPES[name]())


__all__ = ["PREFIX", "resolve"]
