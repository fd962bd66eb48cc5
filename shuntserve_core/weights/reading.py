"""Reading a stage into memory that the caller owns, every byte verified."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from attrs import define, field, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import StoreError, WeightStore
from shuntserve_core.weights.checksum import Checksum
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


class Sink(Protocol):
    """Where the data of tensors goes, piece by piece."""

    def take(self, entry: TensorEntry, offset: int, nbytes: int) -> memoryview:
        """Writable memory for some bytes of a tensor's data; may wait for memory to come free.

        Called from one thread, in the order of entries and bytes.
        """
        ...

    def put(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        """These bytes are there.  The pieces of a tensor come in their order."""
        ...

    def drop(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        """The buffer is not used: the read failed."""
        ...


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
    their order, before anything of that entry is read.  The rest is as for `read_pieces`.
    """
    return read_pieces(
        store, entries, _Whole(buffers), workers=workers, on_bytes=on_bytes, on_tensor=on_tensor
    )


def read_pieces(
    store: WeightStore,
    entries: Sequence[TensorEntry],
    sink: Sink,
    *,
    workers: int = DEFAULT_WORKERS,
    on_bytes: Callable[[int], None] | None = None,
    on_tensor: Callable[[TensorEntry], None] | None = None,
) -> ReadReport:
    """Have a sink take each entry's data, in pieces of at most `READ_BYTES`.

    At most `workers` requests are under way, and nothing but what the sink gives grows with the
    model.  `on_bytes` is told bytes as they come, `on_tensor` each tensor once all of it was put
    and its checksum is right; both are called from one thread at a time.
    Raises `DamagedObject` for a tensor that is not what the manifest says, `StoreError` where the
    store fails; what was put of tensors that `on_tensor` was not told of is then worthless.
    """
    reader = _Reader(store, entries, sink, on_bytes, on_tensor)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-weights")
    slots = threading.BoundedSemaphore(2 * workers)
    futures: list[Future[None]] = []
    try:
        for read in reader.reads():
            slots.acquire()
            future = pool.submit(reader.run, read)
            future.add_done_callback(lambda _: slots.release())
            futures.append(future)
        wait(futures)
        for future in futures:
            future.result()
    finally:
        pool.shutdown()
    return reader.report()


@frozen
class _Whole:
    """Pieces of memory that holds whole tensors."""

    buffers: Callable[[TensorEntry], memoryview]
    _data: dict[str, memoryview] = field(init=False, factory=dict)

    def take(self, entry: TensorEntry, offset: int, nbytes: int) -> memoryview:
        if not offset:
            data = self.buffers(entry).cast("B")
            if data.nbytes != entry.nbytes or data.readonly:
                raise UserError(
                    f"the buffer must be {entry.nbytes} writable bytes, it has {data.nbytes}",
                    where=entry.name,
                )
            self._data[entry.key] = data
        return self._data[entry.key][offset : offset + nbytes]

    def put(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        if offset + buffer.nbytes == entry.nbytes:
            self._data.pop(entry.key, None)

    def drop(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        pass


@frozen(eq=False)
class _Read:
    """One request: bytes `start` to `stop` of an object, of which `data` are the tensor's."""

    target: _Target
    index: int
    start: int
    stop: int
    offset: int
    """Of `data` in the tensor."""
    data: memoryview


@define(eq=False)
class _Target:
    """One tensor on its way."""

    entry: TensorEntry
    header: memoryview
    count: int
    """Requests in all."""
    next: int = 0
    """The request whose bytes the checksum wants next."""
    busy: bool = False
    """Whether somebody is adding to the checksum."""
    there: dict[int, _Read] = field(factory=dict)
    """Requests that have come back before their turn."""
    digest: Checksum = field(factory=Checksum)
    lock: threading.Lock = field(factory=threading.Lock)


class _Reader:
    """What the workers share."""

    def __init__(
        self,
        store: WeightStore,
        entries: Sequence[TensorEntry],
        sink: Sink,
        on_bytes: Callable[[int], None] | None,
        on_tensor: Callable[[TensorEntry], None] | None,
    ) -> None:
        self._failed = threading.Event()
        self._store, self._entries, self._sink = store, entries, sink
        self._on_bytes, self._on_tensor = on_bytes, on_tensor
        self._lock = threading.Lock()
        self._first_layer = min((e.layer for e in entries if e.layer is not None), default=None)
        self._first_layer_seconds: float | None = None
        self._started = time.perf_counter()
        self._targets: list[_Target] = []

    def reads(self) -> Iterator[_Read]:
        """Every request in order, with memory for what it brings; ends at once after a failure.

        The memory of the oldest one that is not done was taken first, so that a sink with little
        memory gets some back.
        """
        for entry in self._entries:
            size, before = entry.record.size, entry.record.header.header_bytes
            starts = range(0, size, READ_BYTES)
            target = _Target(entry, memoryview(bytearray(before)), len(starts))
            self._targets.append(target)
            for index, start in enumerate(starts):
                stop = min(start + READ_BYTES, size)
                low, high = max(start - before, 0), max(stop - before, 0)
                try:
                    data = self._sink.take(entry, low, high - low)
                except BaseException:
                    self._fail()
                    raise
                if self._failed.is_set():
                    self._sink.drop(entry, low, data)
                    return
                yield _Read(target, index, start, stop, low, data)

    def run(self, read: _Read) -> None:
        """Read one range, and put what has its turn."""
        if self._failed.is_set():
            self._drop(read)
            return
        try:
            self._fetch(read)
        except BaseException:
            self._drop(read)
            self._fail()
            raise
        with read.target.lock:
            read.target.there[read.index] = read
        try:
            self._advance(read.target)
        except BaseException:
            self._fail()
            raise
        if self._failed.is_set():  # since we put it there
            self._fail()

    def _fetch(self, read: _Read) -> None:
        target = read.target
        header = cut_pieces([target.header], read.start, read.stop)
        self._store.read_into(target.entry.key, [*header, read.data], read.start)
        with self._lock:
            if self._on_bytes:
                self._on_bytes(read.stop - read.start)

    def _advance(self, target: _Target) -> None:
        """Add to the checksum whatever has its turn, unless somebody else does so already."""
        while True:
            with target.lock:
                if target.busy or target.next not in target.there:
                    return
                target.busy = True
                read = target.there.pop(target.next)
            self._put(read)
            with target.lock:
                target.busy = False
                target.next += 1
                complete = target.next == target.count
            if complete:
                verify_tensor(target.entry, target.header, target.digest)
                with self._lock:
                    self._note(target.entry)

    def _put(self, read: _Read) -> None:
        target = read.target
        for piece in cut_pieces([target.header], read.start, read.stop):
            target.digest.update(piece)
        target.digest.update(read.data)
        self._sink.put(target.entry, read.offset, read.data)

    def _fail(self) -> None:
        """Let go of everything that waits for its turn: the turn does not come."""
        self._failed.set()
        for target in list(self._targets):
            with target.lock:
                waiting = list(target.there.values())
                target.there.clear()
            for read in waiting:
                self._drop(read)

    def _drop(self, read: _Read) -> None:
        self._sink.drop(read.target.entry, read.offset, read.data)

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


def verify_tensor(entry: TensorEntry, header: memoryview, digest: Checksum) -> None:
    """Raise `DamagedObject` unless header and checksum are what the manifest says."""
    if digest.text() == entry.record.checksum:
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
