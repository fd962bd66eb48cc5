"""Reading a stage into memory that the caller owns, every byte verified."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from attrs import define, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError, WeightStore
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.pieces import cut_pieces
from shuntserve_core.weights.stages import TensorEntry
from shuntserve_core.weights.traw import TrawError, decode_header

READ_BYTES = 8 << 20
"""One request reads at most this much; a large tensor is read by several at once."""

DEFAULT_WORKERS = 8


class DamagedObject(StoreError):
    """What the store holds is not what the manifest promises."""


@frozen
class ReadReport:
    """What a read took."""

    tensors: int
    nbytes: int
    """Bytes read, headers included."""
    seconds: float
    first_layer_seconds: float | None
    """Until every tensor of the lowest layer was there and verified; None without layers."""

    @property
    def bytes_per_second(self) -> float:
        """Rate over the whole read."""
        return self.nbytes / self.seconds if self.seconds else 0.0


def read_stage(
    store: WeightStore,
    entries: Sequence[TensorEntry],
    buffers: Callable[[TensorEntry], memoryview],
    *,
    workers: int = DEFAULT_WORKERS,
    on_bytes: Callable[[int], None] | None = None,
    on_tensor: Callable[[TensorEntry], None] | None = None,
) -> ReadReport:
    """Fill one buffer an entry with the tensor's data, straight from the store.

    `buffers` gives writable memory of exactly `entry.nbytes` bytes; it is called once an entry, in
    their order, before anything of that entry is read.  At most `workers` requests are under way,
    and nothing but the given buffers grows with the model.  `on_bytes` is told bytes as they
    come, `on_tensor` each tensor once its checksum is right; both are called from one thread
    at a time.
    Raises `DamagedObject` for a tensor that is not what the manifest says, `StoreError` where the
    store fails; buffers of tensors that `on_tensor` was not told of then hold anything.
    """
    reader = _Reader(store, entries, on_bytes, on_tensor)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-weights")
    slots = threading.BoundedSemaphore(2 * workers)
    futures: list[Future[None]] = []
    try:
        for read in _reads(entries, buffers):
            slots.acquire()
            if reader.failed.is_set():
                break
            future = pool.submit(reader.run, read)
            future.add_done_callback(lambda _: slots.release())
            futures.append(future)
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return reader.report()


@define(eq=False)
class _Target:
    """One tensor on its way."""

    entry: TensorEntry
    header: memoryview
    data: memoryview
    missing: int
    """Requests that have not come back yet."""


@frozen(eq=False)
class _Read:
    """One request: bytes `start` to `stop` of an object."""

    target: _Target
    start: int
    stop: int


def _reads(
    entries: Sequence[TensorEntry], buffers: Callable[[TensorEntry], memoryview]
) -> Iterator[_Read]:
    for entry in entries:
        data = buffers(entry).cast("B")
        if data.nbytes != entry.nbytes or data.readonly:
            raise UserError(
                f"the buffer must be {entry.nbytes} writable bytes, it has {data.nbytes}",
                where=entry.name,
            )
        size = entry.record.size
        starts = range(0, size, READ_BYTES)
        header = memoryview(bytearray(entry.record.header.header_bytes))
        target = _Target(entry, header, data, len(starts))
        for start in starts:
            yield _Read(target, start, min(start + READ_BYTES, size))


class _Reader:
    """What the workers share."""

    def __init__(
        self,
        store: WeightStore,
        entries: Sequence[TensorEntry],
        on_bytes: Callable[[int], None] | None,
        on_tensor: Callable[[TensorEntry], None] | None,
    ) -> None:
        self.failed = threading.Event()
        self._store, self._entries = store, entries
        self._on_bytes, self._on_tensor = on_bytes, on_tensor
        self._lock = threading.Lock()
        self._first_layer = min((e.layer for e in entries if e.layer is not None), default=None)
        self._first_layer_seconds: float | None = None
        self._started = time.perf_counter()

    def run(self, read: _Read) -> None:
        """Read one range; whoever brings the last range of a tensor verifies the tensor."""
        try:
            self._run(read)
        except BaseException:
            self.failed.set()
            raise

    def _run(self, read: _Read) -> None:
        target = read.target
        pieces = cut_pieces([target.header, target.data], read.start, read.stop)
        self._store.read_into(target.entry.key, pieces, read.start)
        with self._lock:
            target.missing -= 1
            complete = not target.missing
            if self._on_bytes:
                self._on_bytes(read.stop - read.start)
        if complete:
            verify_tensor(target.entry, target.header, target.data)
            with self._lock:
                self._note(target.entry)

    def _note(self, entry: TensorEntry) -> None:
        if entry.layer is not None and entry.layer == self._first_layer:
            self._first_layer_seconds = time.perf_counter() - self._started
        if self._on_tensor:
            self._on_tensor(entry)

    def report(self) -> ReadReport:
        """Figures of the finished read."""
        nbytes = sum(entry.record.size for entry in self._entries)
        seconds = time.perf_counter() - self._started
        return ReadReport(len(self._entries), nbytes, seconds, self._first_layer_seconds)


def verify_tensor(entry: TensorEntry, header: memoryview, data: memoryview) -> None:
    """Raise `DamagedObject` unless header and data are what the manifest says."""
    if checksum([header, data]) == entry.record.checksum:
        return
    raise DamagedObject(
        f"the object is damaged: {_what_is_wrong(entry, header)}",
        where=entry.key,
        remedy="push the model again",
    )


def _what_is_wrong(entry: TensorEntry, header: memoryview) -> str:
    if header == entry.record.header.encode():
        return "its checksum is wrong"
    try:
        decode_header(header, file_bytes=entry.record.size)
    except TrawError as error:
        return error.message
    return "its header is not the one in the manifest"
