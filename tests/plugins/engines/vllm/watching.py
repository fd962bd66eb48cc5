"""Every way to unpickle, watched: what a forked process unpickles is written to a file."""

from __future__ import annotations

import _pickle
import os
import pickle
import sys
import traceback
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cloudpickle

FILE = "SHUNTSERVE_UNPICKLED"
"""In the environment: where it is written, with where from."""


def watch() -> None:
    """From now on, in all processes that are forked from this one."""
    this, file = os.getpid(), Path(os.environ[FILE])

    def write(what: str) -> None:
        if os.getpid() != this:
            stack = "".join(traceback.format_stack(limit=12)[:-2])
            with file.open("a") as stream:
                stream.write(f"{what}\n{stack}\n")

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            write(name)
            return function(*args, **options)

        return call

    class Unpickler(pickle.Unpickler):
        def load(self) -> Any:
            write("Unpickler")
            return super().load()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            write(f"find_class {arguments}")

    sys.addaudithook(heard)
    for owner in (pickle, _pickle, cloudpickle, ForkingPickler):
        for name in {"load", "loads"} & vars(owner).keys():
            setattr(owner, name, watched(f"{owner.__name__}.{name}", getattr(owner, name)))
    for module in (pickle, _pickle):
        module.Unpickler = Unpickler  # type: ignore[misc, assignment]
