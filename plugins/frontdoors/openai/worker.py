"""A process that reads large request bodies, one at a time, for the event loop of a front door.

It talks over the socket that is its standard input: frames of a big-endian uint32 length and that
many bytes.  It ends when the other end closes, or when a job takes more processor time than it may.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from shuntserve_core.text import Budget, TextTokenizer, load_tokenizer
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.pool import bound_time
from shuntserve_plugins.frontdoors.openai.prompts import Bounds
from shuntserve_plugins.frontdoors.openai.reading import pack, read

PREFIX = 4
NICE = 15
"""The event loop and engines come first."""
MEMORY = 4 << 30
"""Bytes that a job may add to what the process has."""


class Setup(msgspec.Struct, array_like=True):
    """What a worker is told first."""

    model_dir: str
    template: str
    seconds: float
    """That a job may take."""


class Job(msgspec.Struct, array_like=True):
    """A body to read; the body itself is the next frame."""

    kind: str
    model: str
    max_length: int
    choices: int
    characters: int
    """That a chat template may write, if that is more than the model can take."""


class Answer(msgspec.Struct, array_like=True):
    """A packed reading, or the error to answer the client with."""

    reading: bytes = b""
    status: int = 0
    message: str = ""
    param: str | None = None
    code: str | None = None


_setup = msgspec.msgpack.Decoder(Setup)
_job = msgspec.msgpack.Decoder(Job)


def answer(tokenizer: TextTokenizer, job: Job, raw: bytes) -> Answer:
    """Do a job."""
    fit = (tokenizer.bytes_per_token or 0) * job.max_length
    budget = Budget(steps=1 << 62, characters=max(fit, job.characters))
    bounds = Bounds(job.model, job.max_length, job.choices, budget)
    try:
        return Answer(pack(job.kind, read(job.kind, tokenizer, bounds, raw)))
    except ApiError as error:
        return Answer(b"", error.status, error.message, error.param, error.code)
    except MemoryError:
        return Answer(b"", 400, "Reading the request takes too much memory.", None, "too_costly")


def main() -> None:
    """Work until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which closes
    os.nice(NICE)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as peer, peer.makefile("rb") as frames:

        def frame() -> bytes:
            head = frames.read(PREFIX)
            if len(head) < PREFIX:
                raise SystemExit(0)
            return frames.read(int.from_bytes(head, "big"))

        setup = _setup.decode(frame())
        tokenizer = load_tokenizer(setup.model_dir, template=setup.template)
        tokenizer.learn_templates()
        _bound_memory()
        # Of millions of small lists the collector would look through all, over and over.
        gc.disable()
        gc.freeze()
        done = b""  # the first word says that it is ready
        while True:
            peer.sendall(len(done).to_bytes(PREFIX, "big") + done)
            job, raw = _job.decode(frame()), frame()
            bound_time(setup.seconds)
            done = msgspec.msgpack.encode(answer(tokenizer, job, raw))
            bound_time(0)
            del raw
            gc.collect()


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main()
