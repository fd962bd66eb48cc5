"""Collecting all mistakes of a file; each is one line: file, key, what is wrong, the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from attrs import field, frozen
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from shuntserve_core.config.docstrings import field_docs
from shuntserve_core.config.fields import field_words
from shuntserve_core.config.structure import OPTIONS_FIELD, Wrong
from shuntserve_core.errors import UserError, UserErrorGroup, did_you_mean


@frozen
class Mistakes:
    """All that is wrong in one file."""

    file: str
    """Empty for what comes from no file."""
    found: list[UserError] = field(factory=list)

    def add(self, key: str, message: str, remedy: str) -> None:
        """Note one mistake at a key path such as `cluster[2].count`."""
        where = ": ".join(part for part in (self.file, key) if part)
        self.found.append(UserError(message, where=where, remedy=remedy))

    def add_structure_error(self, error: Exception, key: str) -> None:
        """Note every mistake that cattrs reported below a key."""
        for path, message, remedy in _flatten(error, key):
            self.add(path, message, remedy)

    def raise_if_any(self) -> None:
        """Raise the mistake, or all of them together."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise UserErrorGroup(self.found)


def _flatten(error: BaseException, key: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(error, ClassValidationError | IterableValidationError):
        for inner in error.exceptions:
            note = _note_of(inner)
            if isinstance(inner, KeyError) and isinstance(note, AttributeValidationNote):
                yield _missing(error.cl, note.name, key)
            else:
                yield from _flatten(inner, _extend(key, note))
    elif isinstance(error, ForbiddenExtraKeysError):
        for extra in sorted(error.extra_fields):
            known = [a.name for a in attrs.fields(error.cl) if a.init and a.name != OPTIONS_FIELD]
            yield _join(key, extra), "unknown key", did_you_mean(extra, known)
    elif isinstance(error, Wrong):
        yield key, str(error), error.remedy
    else:
        text = str(error).partition("\n")[0] or type(error).__name__
        yield key, text, "see the configuration reference for this key"


def _note_of(error: BaseException) -> AttributeValidationNote | IterableValidationNote | None:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote | IterableValidationNote):
            return note
    return None


def _extend(key: str, note: AttributeValidationNote | IterableValidationNote | None) -> str:
    if note is None:
        return key
    if isinstance(note, AttributeValidationNote):
        return _join(key, note.name)
    return f"{key}[{note.index}]" if isinstance(note.index, int) else _join(key, note.index)


def _join(key: str, name: str) -> str:
    shown = name if name.isprintable() and name else ascii(name)
    return f"{key}.{shown}" if key else shown


def _missing(cls: Any, name: str, key: str) -> tuple[str, str, str]:
    attribute = attrs.fields_dict(cls)[name]
    doc = field_docs(cls).get(name, "").partition(". ")[0].rstrip(".")
    remedy = f"add {name} = {field_words(attribute)}" + (f" ({doc})" if doc else "")
    return _join(key, name), "is missing", remedy
