"""Writing below a directory without being led out of it.

Whoever may write into a store can leave a link in it.  A path that is opened by its name follows
such links; here each folder is opened from the one above it, and links are refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shuntserve_core.interfaces.store import StoreError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def folder_below(root: Path, key: str, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder that `key` lies in, for calls with `dir_fd`.

    Raises `StoreError` where a part of the way is a link, `OSError` where it is not there.
    """
    *folders, _ = key.split("/")
    if create:
        root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folders:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            inner = _open_folder(name, descriptor, root, key)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(name: str, above: int, root: Path, key: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                raise _is_link(name, root, key) from None
        raise


def open_to_write(name: str, folder: int, root: Path, key: str) -> int:
    """A descriptor of an ordinary file, made if it is not there, that has no other name.

    Raises `StoreError` for a link, hard or symbolic, and for what is no file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise _is_link(name, root, key) from None
        raise
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise _is_link(name, root, key)
    return descriptor


def _is_link(name: str, root: Path, key: str) -> StoreError:
    return StoreError(
        f"{name} is a link, and nothing is written through links",
        where=f"{root}: {key}",
        remedy="remove it, and see who may write into the store",
    )
