"""The documentation of a key: the docstring below the field, read from the class's source.

Python keeps no docstrings of fields at run time.  Reading the source keeps each key documented in
one place, where it is defined, and costs time only where somebody wants to read it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import lru_cache


@lru_cache
def field_docs(cls: type) -> dict[str, str]:
    """Docstring of each field of an attrs class and its bases; fields without one are left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        docs.update(_own_field_docs(base))
    return docs


def _own_field_docs(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # no source at hand: a frozen or interactive class
        return {}
    definition = tree.body[0]
    if not isinstance(definition, ast.ClassDef):
        return {}
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[statement.target.id] = " ".join(inspect.cleandoc(text).split())
    return docs
