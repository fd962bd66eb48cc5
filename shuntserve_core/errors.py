"""Errors that a user can cause, and how a near miss is suggested."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right: shown as one line, without a traceback.

    The message says what is wrong, `where` names the file and key (or the flag), and `remedy`
    says what would be right.  The command line exits with status 2.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        """One line: where, what, and the remedy."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


class UserErrorGroup(UserError):
    """Several independent mistakes, found in one go; one line for each."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} errors")

    def __str__(self) -> str:
        """One line an error, in the order of finding."""
        return "\n".join(str(error) for error in self.errors)


MOST_NAMES = 12
"""As many names are listed in full; of more, only those that resemble the word."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the closest of `known`, then all of them: a remedy for a misspelt name."""
    names = sorted(known)
    if not names:
        return "none is available"
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:100], lowered, n=3, cutoff=0.6)
    hint = f"did you mean {lowered[close[0]]!r}? " if close else ""
    if len(names) <= MOST_NAMES:
        return f"{hint}available: {', '.join(names)}"
    like = [lowered[name] for name in close[1:]] if close else names[:MOST_NAMES]
    listed = f"also like it: {', '.join(like)}; " if close and like else ""
    listed = listed if close else f"among others: {', '.join(like)}; "
    return f"{hint}{listed}{len(names)} are available"
