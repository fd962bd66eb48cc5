"""Files and directories that belong to this user alone."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import IO
from urllib.parse import quote

from shuntserve_core.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "raise the quota, or choose another place",
    errno.EROFS: "it is mounted read-only: choose another place",
    errno.EACCES: "choose a place that this user may write to",
    errno.EPERM: "choose a place that this user may write to",
    errno.EFBIG: "raise the limit (ulimit -f), or choose another place",
    errno.EMFILE: "raise the limit: ulimit -n 65536",
    errno.ENFILE: "raise this machine's limit: sysctl fs.file-max",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "it is a link to itself: name the file that is meant",
    errno.EIO: "check the disk",
    errno.EADDRINUSE: "stop what listens there, or choose another port",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.ENOENT: "correct the name",
    errno.ENOTDIR: "correct the name: a part of it is a file",
    errno.EISDIR: "name a file, not a directory",
}
_OTHERWISE = "choose a place that this user may write to"
_SETTINGS = "(serve.state_dir, XDG_STATE_HOME, TMPDIR)"
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_OF_NAMES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REMEDY = "remove it, or choose another place (TMPDIR, serve.state_dir)"


def unwritable(error: OSError, where: Path | str = "") -> UserError:
    """One line for what keeps a file or directory from being written."""
    number = error.errno or 0
    remedy = _OTHERWISE if number in _OF_NAMES else _REMEDIES.get(number, _OTHERWISE)
    reason = (error.strerror or str(error)).lower()
    return UserError(
        f"cannot write: {reason}",
        where=str(where or error.filename or ""),
        remedy=f"{remedy} {_SETTINGS}" if "place" in remedy else remedy,
    )


def remedy_of(error: OSError) -> str:
    """What a user can do about it; empty for what this table does not know."""
    return _REMEDIES.get(error.errno or 0, "")


def users_own(error: OSError) -> UserError | None:
    """One line for what a machine or a name is to blame for, wherever it is met.

    None for what would be a bug of ours.
    """
    number = error.errno or 0
    if number in _OF_WRITING:
        return unwritable(error)
    if number not in _REMEDIES or (number in _OF_NAMES and not error.filename):
        return None
    reason = (error.strerror or str(error)).lower()
    if number in (errno.EACCES, errno.EPERM):
        return UserError(
            reason,
            where=str(error.filename or ""),
            remedy="choose another one, or have this user allowed to use it",
        )
    return UserError(reason, where=str(error.filename or ""), remedy=_REMEDIES[number])


def file_name(name: str) -> str:
    """A name of something, as the name of a file: different ones differ, and none is a path."""
    quoted = quote(name, safe="#+") or "%"
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner alone.

    Raises `UserError` where that cannot be, and leaves what was there.
    """
    scratch = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, flags, 0o600), "w") as file:
            file.write(text)
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise unwritable(error, path) from error


def open_log(path: Path) -> IO[bytes]:
    """A log to add to, readable by its owner alone.

    Raises `UserError` where a link or somebody else's file is in its place.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        problem = unwritable(error, path)
        reason = f"no log can be kept: {error.strerror}"
        raise UserError(reason, where=str(path), remedy=problem.remedy) from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_uid != os.geteuid():
        os.close(descriptor)
        raise UserError("not a file of this user's alone", where=str(path), remedy=_REMEDY)
    os.fchmod(descriptor, 0o600)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "ab")


def private_dir(path: Path) -> Path:
    """A directory that only this user can look into, made if it is not there.

    Raises `UserError` where a link, somebody else's directory, or one that others may write to is
    in its place or above it: whoever can rename a directory can put another in its place.
    """
    with contextlib.suppress(FileExistsError):
        _make(path, 0o700)
    descriptor = _open_own(path)
    try:
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return path


def own_dir(path: Path) -> Path:
    """As `private_dir`, for one that the user has chosen: what it is readable for stays."""
    with contextlib.suppress(FileExistsError):
        _make(path, 0o700)
    os.close(_open_own(path.resolve()))
    return path


def _make(path: Path, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode)
    except FileExistsError:
        raise
    except OSError as error:
        raise unwritable(error, path) from error


def _open_own(path: Path) -> int:
    """A descriptor of the directory, once it is clear that nobody else can change what it holds."""
    _check_above(path)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError as error:
        raise UserError(
            f"not a directory of this user's: {error.strerror}", where=str(path), remedy=_REMEDY
        ) from error
    facts = os.fstat(descriptor)
    reason = ""
    if facts.st_uid != os.geteuid():
        reason = f"it belongs to user {facts.st_uid}, not to {os.geteuid()}"
    elif facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = "others may write to it"
    if reason:
        os.close(descriptor)
        raise UserError(f"not to be trusted: {reason}", where=str(path), remedy=_REMEDY)
    return descriptor


def _check_above(path: Path) -> None:
    """Every folder on the way, and where the way goes through links those that they lead to."""
    for above in {*path.absolute().parents, *path.resolve().parents}:
        facts = above.lstat()
        open_to_all = facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX
        shared = open_to_all and not stat.S_ISLNK(facts.st_mode)
        if shared or facts.st_uid not in (0, os.geteuid()):
            raise UserError(
                f"not to be trusted: others can replace what is in {above}",
                where=str(path),
                remedy="choose another place (TMPDIR, serve.state_dir)",
            )
