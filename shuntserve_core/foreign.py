"""Files that somebody else wrote, read within bounds.

A checkpoint, a trace or a weight store may come from anybody.  What is read of it here is bounded
in size, in depth and in number of values before anything is built of it, so that a small file
cannot fill the memory, and a name in it never leads out of the folder that it came in.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from shuntserve_core.errors import UserError

MOST_JSON_BYTES = 64 << 20
"""Manifests of the largest models, cut for several degrees, are a tenth of it."""
MOST_JSON_VALUES = 4_000_000
"""Values, keys and brackets: what bounds the memory that the parsed document takes."""
DEEPEST_JSON = 64
"""Levels of nesting; configurations have five."""
MOST_FILE_BYTES = 256 << 20
"""Of a file that is held in memory; the largest tokenizers have 40 MB."""


def parse_json(text: bytes | str, *, large: bool = False, unique: bool = False) -> Any:
    """The document; `large` for what may be of any size, such as a trace of a user's own.

    With `unique`, an object that has a key twice is refused as well.

    Raises `ValueError` for what is not JSON, is too large or nested too deeply, and for numbers
    that are not finite: Python's own parser takes `NaN`, `1e999` and a thousand brackets.
    """
    if not large:
        _check_size(text.encode() if isinstance(text, str) else text)
    try:
        document = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_unique if unique else None,
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST_JSON} levels deep") from None
    _check_depth(document)
    return document


def _check_size(text: bytes) -> None:
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, at most {MOST_JSON_BYTES} make sense")
    # Every value follows a bracket or a comma; those in strings only make the count safer.
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > MOST_JSON_VALUES:
        raise ValueError(f"{values} values, at most {MOST_JSON_VALUES} make sense")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:100]!r} is there twice")
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST_JSON} levels deep")


def read_bytes(path: Path, most: int = MOST_FILE_BYTES) -> bytes:
    """A whole ordinary file.

    Raises `UserError` where it is larger than `most`, or is a pipe or device that never ends;
    `OSError` as reading does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(21, "is a directory", str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise UserError("is not an ordinary file", where=str(path), remedy="name a file")
        data = file.read(min(most, facts.st_size) + 1)
    if len(data) > most:
        raise UserError(
            f"is larger than the {most} bytes that make sense",
            where=str(path),
            remedy="see whether it is the right file",
        )
    return data


def read_any(path: Path, most: int = MOST_FILE_BYTES) -> bytes:
    """A file or pipe of the user's own, as far as it goes.

    Raises `UserError` where that is further than `most`, as with a device that never ends;
    `OSError` as reading does.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(
            f"is larger than the {most} bytes that make sense",
            where=str(path),
            remedy="see whether it is the right file, or give a part of it",
        )
    return data


def file_inside(folder: Path, name: str) -> Path:
    """The file of that name in a folder, links followed as long as they stay in it.

    The hub's cache keeps a revision as links to `blobs` beside it, which are followed too.
    Raises `UserError` for a name or a link that leads elsewhere.
    """
    parts = PurePosixPath(name)
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{name!r} is no name of a file in the folder",
            where=str(folder),
            remedy="correct whatever names it",
        )
    path = folder / name
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise UserError(
            f"{name} is a link that leads nowhere", where=str(folder), remedy="put the file there"
        ) from error
    if not any(real.is_relative_to(allowed) for allowed in homes):
        raise UserError(
            f"{name} is a link out of the folder",
            where=str(folder),
            remedy="put a copy of the file there if you trust it",
        )
    return path


def whole_number(value: object, lowest: int, highest: int) -> int:
    """The value, if it is a whole number in that range.  Raises `ValueError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        shown = repr(value)[:40]
        raise ValueError(f"expected a whole number from {lowest} to {highest}, got {shown}")
    return value
