"""A weight store in a local (or mounted) directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.files import remedy_of
from shuntserve_core.foreign import read_bytes
from shuntserve_core.interfaces.store import (
    ObjectInfo,
    ObjectMissing,
    Pieces,
    StoreError,
    VersionConflict,
)
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.pieces import cut_pieces, total_bytes
from shuntserve_plugins.storage.below import folder_below, open_to_write

PART_BYTES = 16 << 20
"""What an interrupted `put` loses at most."""

_SYNC_BYTES = 1 << 20
_MAX_VECTORS = 512


@frozen
class DirectoryStore:
    """Objects are files.  An unfinished one is hidden beside its place, named by checksum."""

    root: Path

    @classmethod
    def from_url(cls, url: str) -> DirectoryStore:
        """Open `file:///path` or a plain path."""
        if "://" not in url:
            return cls(Path(url).expanduser().absolute())
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UserError(
                f"{url!r} names no local directory", remedy="write file:///path with three slashes"
            )
        return cls(Path(unquote(parts.path)))

    @property
    def url(self) -> str:
        """`file:///path`."""
        return self.root.absolute().as_uri()

    def check(self) -> None:
        """Raise `StoreError` if the directory is not there."""
        if not self.root.is_dir():
            raise StoreError(
                "there is no such directory",
                where=str(self.root),
                remedy="create it, or correct the store's path",
            )

    def read_into(self, key: str, buffers: Pieces, offset: int = 0) -> None:
        """Fill the buffers straight from the file."""
        with _clear_errors(key, self.root):
            descriptor = os.open(self._path(key), os.O_RDONLY)
            try:
                _read_fully(descriptor, list(buffers), offset, key)
            finally:
                os.close(descriptor)

    def get(self, key: str) -> tuple[bytes, str]:
        """The file's bytes; their checksum is the version."""
        with _clear_errors(key, self.root):
            data = read_bytes(self._path(key))
        return data, checksum([data])

    def put(
        self, key: str, pieces: Pieces, checksum: str, on_sent: Callable[[int], None] | None = None
    ) -> None:
        """Write beside the object's place, then rename; parts already written there are kept."""
        name = self._path(key).name
        unfinished = f".{name}.{checksum.rpartition(':')[2]}.part"
        with (
            _clear_errors(key, self.root),
            folder_below(self.root, key, create=True) as folder,
        ):
            descriptor = open_to_write(unfinished, folder, self.root, key)
            try:
                _write_parts(descriptor, pieces, on_sent)
            finally:
                os.close(descriptor)
            os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Replace the file under a lock on its directory, or create it where there is none."""
        name = self._path(key).name
        with _clear_errors(key, self.root):
            try:
                with folder_below(self.root, key, create=True) as folder:
                    fcntl.flock(folder, fcntl.LOCK_EX)
                    _replace_if(name, folder, data, version, f"{self.root}: {key}")
            except (FileExistsError, FileNotFoundError) as error:
                # Somebody created it, or removed the directory, between two of our steps.
                raise VersionConflict("it was written in the meantime", where=key) from error
        return checksum([data])

    def stat(self, key: str) -> ObjectInfo | None:
        """Size only: a file system keeps no checksum."""
        with _clear_errors(key, self.root):
            try:
                return ObjectInfo(key, self._path(key).stat().st_size)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every finished file whose key begins with `prefix`."""
        for path in self._files(prefix):
            if not _is_unfinished(path.name):
                with contextlib.suppress(FileNotFoundError):
                    yield ObjectInfo(self._key(path), path.stat().st_size)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files, and directories that this leaves empty."""
        for key in keys:
            path = self._path(key)
            with _clear_errors(key, self.root), contextlib.suppress(FileNotFoundError):
                with folder_below(self.root, key) as folder:
                    os.unlink(path.name, dir_fd=folder)
                self._remove_empty_above(path)

    def discard_unfinished(self, prefix: str) -> int:
        """Remove hidden `.part` files."""
        unfinished = [path for path in self._files(prefix) if _is_unfinished(path.name)]
        self.delete(map(self._key, unfinished))
        return len(unfinished)

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, key: str) -> Path:
        if not key or {"", ".", ".."} & set(key.split("/")) or "\0" in key:
            raise StoreError("a key stays below its store", where=key)
        return self.root / key

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _files(self, prefix: str) -> Iterator[Path]:
        top = self.root / prefix.rpartition("/")[0]
        for directory, _, names in os.walk(top, onerror=_unless_gone):
            for name in names:
                path = Path(directory, name)
                if self._key(path).startswith(prefix):
                    yield path

    def _remove_empty_above(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == self.root:
                    break
                parent.rmdir()


def _unless_gone(error: OSError) -> None:
    """What may not be read is not the same as what is not there, which another may have removed."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _read_fully(descriptor: int, buffers: list[memoryview], offset: int, key: str) -> None:
    wanted = [buffer.cast("B") for buffer in buffers if buffer.nbytes]
    while wanted:
        count = os.preadv(descriptor, wanted[:_MAX_VECTORS], offset)
        if not count:
            raise StoreError(
                f"the object ends {total_bytes(wanted)} bytes early", where=key, remedy="push again"
            )
        offset += count
        wanted = cut_pieces(wanted, count, total_bytes(wanted))


def _write_parts(descriptor: int, pieces: Pieces, on_sent: Callable[[int], None] | None) -> None:
    """Write from the first part that is not there yet, and make the file as long as it must be."""
    size = total_bytes(pieces)
    start = _already_written(descriptor, pieces, size)
    for part in range(start, size, PART_BYTES):
        stop = min(part + PART_BYTES, size)
        position, rest = part, cut_pieces(pieces, part, stop)
        while rest:
            count = os.pwritev(descriptor, rest[:_MAX_VECTORS], position)
            position += count
            rest = cut_pieces(rest, count, total_bytes(rest))
        if on_sent:
            on_sent(stop - part)
    os.ftruncate(descriptor, size)
    if size >= _SYNC_BYTES:
        os.fdatasync(descriptor)


def _already_written(descriptor: int, pieces: Pieces, size: int) -> int:
    """Where to go on: after the whole parts that hold what they should."""
    there = min(os.fstat(descriptor).st_size, size)
    start = 0
    while start < there:
        stop = min(start + PART_BYTES, size)
        found = os.pread(descriptor, stop - start, start)
        if checksum([found]) != checksum(cut_pieces(pieces, start, stop)):
            break
        start = stop
    return start


def _replace_if(name: str, folder: int, data: bytes, version: str | None, where: str) -> None:
    found = _checksum_of(name, folder)
    if found != version:
        raise VersionConflict("it was written in the meantime", where=where)
    unfinished = f".{name}.{uuid.uuid4().hex}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(unfinished, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if version is None:  # fails if it exists, lock or no lock
            os.link(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=folder)


def _checksum_of(name: str, folder: int) -> str | None:
    """Of the stored object; None where there is none."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return checksum([file.read()])


@contextlib.contextmanager
def _clear_errors(key: str, root: Path) -> Iterator[None]:
    """Say in one line what the operating system says in its own words."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing("there is no such object", where=f"{root}: {key}") from error
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free some space and push again: what was stored is kept",
            errno.EDQUOT: "raise the quota and push again: what was stored is kept",
            errno.EACCES: "check who may write there",
            errno.EROFS: "it is mounted read-only",
        }
        raise StoreError(
            error.strerror or str(error),
            where=f"{root}: {key}",
            remedy=remedies.get(error.errno or 0, "") or remedy_of(error),
        ) from error
