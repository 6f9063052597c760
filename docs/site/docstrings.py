"""A griffe extension: roles in docstrings (``:func:`~a.b` ``), which are no Markdown, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`(?:~(?:\w+\.)*)?\.*([\w.]+)`")


class Roles(griffe.Extension):
    """Turns each role into its text: the last name of a ``~`` path, else the path."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of every object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
