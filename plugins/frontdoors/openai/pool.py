"""A few processes that do one job at a time each, with a deadline, and a fair queue before them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Self

from attrs import define, field

from shuntserve_core.runtime.fair import FairQueue, Room

_log = logging.getLogger("shuntserve.frontdoor")
_PREFIX = 4
PATIENCE = 4.0
_START_SECONDS = 60.0
_ATTEMPTS = 2
"""A worker may be killed by somebody for no fault of the job."""


_OUT_OF_TIME = signal.SIGPROF


def bound_time(seconds: float) -> None:
    """Have this process end after so much more processor time; 0 takes that back."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


class Busy(Exception):
    """Too much of this tenant waits already."""


class TooCostly(Exception):
    """The job took longer than it may, or ended the worker each time."""


@define(eq=False)
class _Job:
    name: str
    frames: Sequence[bytes]
    room: Room[_Job]
    done: asyncio.Future[bytes]


@define(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, command: Sequence[str], greeting: bytes) -> Self:
        """Start a process, and wait until it says that it is ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer)
        try:
            await worker.do([greeting], _START_SECONDS)
        except BaseException:
            await worker.end()
            raise
        return worker

    async def do(self, frames: Sequence[bytes], seconds: float) -> bytes:
        """Send frames, receive one.  Raises `TimeoutError`, `EOFError` or `OSError`."""
        async with asyncio.timeout(seconds):
            for frame in frames:
                self.writer.write(len(frame).to_bytes(_PREFIX, "big"))
                self.writer.write(frame)
            length = int.from_bytes(await self.reader.readexactly(_PREFIX), "big")
            return await self.reader.readexactly(length)

    async def end(self) -> None:
        """Kill it, whatever it is doing."""
        self.process.kill()  # does nothing to one that has ended
        self.writer.transport.abort()
        await asyncio.to_thread(self.process.wait)


@define(eq=False)
class WorkerPool:
    """Starts workers as they are needed, keeps them, and replaces those that hang or end."""

    module: str
    """Python module that is run; it reads frames from its standard input, a socket."""
    greeting: bytes
    """First frame for each worker, which answers with a frame once it is ready."""
    size: int
    queue: int
    """Jobs of one tenant that may wait."""
    seconds: float
    """Of processor time that a job may take; workers bound it with `bound_time`.  One that takes
    `PATIENCE` times as long by the clock, whatever it does, is ended too."""
    _queue: FairQueue[_Job] = field(factory=FairQueue, init=False)
    _numbers: itertools.count[int] = field(factory=itertools.count, init=False)
    _idle: list[_Worker] = field(factory=list, init=False)
    _running: set[asyncio.Task[None]] = field(factory=set, init=False)
    _by_tenant: Counter[str] = field(factory=Counter, init=False)

    async def do(self, tenant: str, weight: float, frames: Sequence[bytes]) -> bytes:
        """The answer to a job.  Raises `Busy` or `TooCostly`."""
        room = self._queue.enter(tenant, weight)
        job = _Job(
            str(next(self._numbers)), frames, room, asyncio.get_running_loop().create_future()
        )
        try:
            if len(room) >= self.queue:
                raise Busy
            self._queue.add(room, job.name, job)
            self._start_jobs()
            return await job.done
        finally:
            self._queue.drop(room, job.name)
            self._queue.leave(room)

    async def close(self) -> None:
        """End all workers; jobs that run are cancelled."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.end() for worker in idle))

    def _start_jobs(self) -> None:
        while len(self._running) < self.size:
            job = next(filter(self._may_run, self._queue.turns()), None)
            if job is None:
                return
            self._queue.drop(job.room, job.name)
            self._queue.serve(job.room, sum(map(len, job.frames)))
            self._by_tenant[job.room.tenant] += 1
            task = asyncio.create_task(self._run(job))
            self._running.add(task)

    def _may_run(self, job: _Job) -> bool:
        """One worker is left for whoever comes next."""
        return self._by_tenant[job.room.tenant] < max(1, self.size - 1)

    async def _run(self, job: _Job) -> None:
        try:
            answer = await self._answer(job)
        except TooCostly as error:
            if not job.done.done():
                job.done.set_exception(error)
        except asyncio.CancelledError:
            job.done.cancel()
            raise
        except Exception as error:
            if not job.done.done():
                job.done.set_exception(error)
        else:
            if not job.done.done():
                job.done.set_result(answer)
        finally:
            self._by_tenant[job.room.tenant] -= 1
            self._by_tenant += Counter()  # drops those at zero
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._start_jobs()

    async def _answer(self, job: _Job) -> bytes:
        for _ in range(_ATTEMPTS):
            worker = await self._worker()
            try:
                answer = await worker.do(job.frames, PATIENCE * self.seconds)
            except (EOFError, OSError) as error:  # a `TimeoutError` is one
                await worker.end()
                if isinstance(error, TimeoutError) or worker.process.returncode == -_OUT_OF_TIME:
                    _log.warning("a request takes more than %g seconds to read", self.seconds)
                    raise TooCostly from None
                _log.warning("a process that reads requests ended")
            except BaseException:
                await worker.end()
                raise
            else:
                self._idle.append(worker)
                return answer
        raise TooCostly

    async def _worker(self) -> _Worker:
        """One that is idle, or a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            await worker.end()
        return await _Worker.start([sys.executable, "-m", self.module], self.greeting)
