"""The fake driver keeps the rules of the real one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest

from shuntserve_core.tensorstore.memory.driver import OUT_OF_MEMORY, CudaError
from shuntserve_core.testing.cuda import GRANULARITY, FakeCard, FakeDriver

N = GRANULARITY


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(FakeCard(nbytes=8 * N, shared=False))


def mapped(driver: FakeDriver, chunks: int = 1, *, writable: bool = True) -> tuple[int, int]:
    """An address with one allocation, mapped `chunks` times, and its handle."""
    address, handle = driver.reserve(chunks * N), driver.create(N)
    for chunk in range(chunks):
        driver.map(address + chunk * N, N, 0, handle)
    driver.set_access(address, chunks * N, writable=writable)
    return address, handle


def released_twice(d: FakeDriver) -> None:
    handle = d.create(N)
    d.release(handle)
    d.release(handle)


def mapped_after_release(d: FakeDriver) -> None:
    handle, address = d.create(N), d.reserve(N)
    d.release(handle)
    d.map(address, N, 0, handle)


def mapped_over(d: FakeDriver) -> None:
    address, handle = mapped(d)
    d.map(address, N, 0, handle)


def mapped_unreserved(d: FakeDriver) -> None:
    address, handle = mapped(d)
    d.map(address + N, N, 0, handle)


def mapped_from_the_middle(d: FakeDriver) -> None:
    d.map(d.reserve(N), N, N, d.create(2 * N))


def mapped_in_part(d: FakeDriver) -> None:
    d.map(d.reserve(N), N, 0, d.create(2 * N))


def mapped_between_granules(d: FakeDriver) -> None:
    d.map(d.reserve(2 * N) + 4096, N, 0, d.create(N))


def unmapped_twice(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.unmap(address, N)
    d.unmap(address, N)


def unmapped_in_part(d: FakeDriver) -> None:
    address = d.reserve(2 * N)
    d.map(address, 2 * N, 0, d.create(2 * N))
    d.unmap(address, N)


def unmapped_too_much(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.unmap(address, 2 * N)


def unmapped_under_a_copy(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.copy(address, d.pin(4096), 10, d.stream())
    d.unmap(address, N)


def freed_while_mapped(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.free(address, N)


def freed_twice(d: FakeDriver) -> None:
    address = d.reserve(N)
    d.free(address, N)
    d.free(address, N)


def freed_in_part(d: FakeDriver) -> None:
    d.free(d.reserve(2 * N), N)


def touched_without_access(d: FakeDriver) -> None:
    address = d.reserve(N)
    d.map(address, N, 0, d.create(N))
    d.zero(address, N)


def touched_after_unmap(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.unmap(address, N)
    d.zero(address, 10)


def touched_beyond(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.zero(address + N - 5, 10)


def written_read_only(d: FakeDriver) -> None:
    address, _ = mapped(d, writable=False)
    d.zero(address, 10)


def copied_read_only(d: FakeDriver) -> None:
    address, _ = mapped(d, writable=False)
    d.copy(address, d.pin(4096), 10, d.stream())


def copied_from_anywhere(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.copy(address, ctypes.addressof(ctypes.create_string_buffer(10)), 10, d.stream())


def copied_on_no_stream(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.copy(address, d.pin(4096), 10, 99)


def allowed_beyond(d: FakeDriver) -> None:
    address, _ = mapped(d)
    d.set_access(address, 2 * N, writable=True)


def imported_closed(d: FakeDriver) -> None:
    fd = d.export(d.create(N))
    os.close(fd)
    d.import_(fd)


def imported_from_another_card(d: FakeDriver) -> None:
    other = FakeDriver()
    fd = other.export(other.create(N))
    try:
        d.import_(fd)
    finally:
        os.close(fd)


def unpinned_twice(d: FakeDriver) -> None:
    address = d.pin(4096)
    d.unpin(address)
    d.unpin(address)


def unpinned_under_a_copy(d: FakeDriver) -> None:
    address, _ = mapped(d)
    source = d.pin(4096)
    d.copy(address, source, 10, d.stream())
    d.unpin(source)


def destroyed_under_a_copy(d: FakeDriver) -> None:
    address, _ = mapped(d)
    stream = d.stream()
    d.copy(address, d.pin(4096), 10, stream)
    d.destroy_stream(stream)


def destroyed_twice(d: FakeDriver) -> None:
    stream = d.stream()
    d.destroy_stream(stream)
    d.destroy_stream(stream)


def waited_for_no_stream(d: FakeDriver) -> None:
    stream = d.stream()
    d.destroy_stream(stream)
    d.synchronize(stream)


WRONG = [
    (lambda d: d.create(N + 1), "granularity"),
    (lambda d: d.create(0), "granularity"),
    (lambda d: d.reserve(4096), "granularity"),
    (released_twice, "no handle"),
    (mapped_after_release, "no handle"),
    (mapped_over, "something is mapped there"),
    (mapped_unreserved, "not reserved"),
    (mapped_from_the_middle, "not the whole allocation"),
    (mapped_in_part, "not the whole allocation"),
    (mapped_between_granules, "granularity"),
    (unmapped_twice, "not whole mappings"),
    (unmapped_in_part, "not whole mappings"),
    (unmapped_too_much, "not whole mappings"),
    (unmapped_under_a_copy, "a copy is under way"),
    (freed_while_mapped, "something is mapped there"),
    (freed_twice, "not a reserved range"),
    (freed_in_part, "not a reserved range"),
    (touched_without_access, "illegal memory access"),
    (touched_after_unmap, "illegal memory access"),
    (touched_beyond, "illegal memory access"),
    (written_read_only, "illegal memory access"),
    (copied_read_only, "illegal memory access"),
    (copied_from_anywhere, "not pinned"),
    (copied_on_no_stream, "no such stream"),
    (allowed_beyond, "not whole mappings"),
    (imported_closed, "no such descriptor"),
    (imported_from_another_card, "not memory of this GPU"),
    (unpinned_twice, "not pinned"),
    (unpinned_under_a_copy, "a copy is under way"),
    (destroyed_under_a_copy, "a copy is under way"),
    (destroyed_twice, "no such stream"),
    (waited_for_no_stream, "no such stream"),
]


@pytest.mark.parametrize(("act", "reason"), WRONG)
def test_what_breaks_a_rule_is_an_error(
    driver: FakeDriver, act: Callable[[FakeDriver], object], reason: str
) -> None:
    with pytest.raises(CudaError, match=reason):
        act(driver)


def test_memory_is_free_with_its_last_reference(driver: FakeDriver) -> None:
    address, handle = mapped(driver, 2)
    fd = driver.export(handle)
    again = driver.import_(fd)
    os.close(fd)
    for give_up in (
        lambda: driver.release(handle),
        lambda: driver.unmap(address, 2 * N),
        lambda: driver.release(again),
    ):
        assert driver.memory() == (7 * N, 8 * N)
        give_up()
    assert driver.memory() == (8 * N, 8 * N)
    driver.free(address, 2 * N)
    assert not any(driver.leftovers.values())


def test_a_card_holds_no_more_than_it_has(driver: FakeDriver) -> None:
    driver.create(7 * N)
    with pytest.raises(CudaError) as caught:
        driver.create(2 * N)
    assert caught.value.code == OUT_OF_MEMORY
    driver.create(N)


def test_new_memory_is_not_empty_and_is_seen_at_every_address(driver: FakeDriver) -> None:
    address, _ = mapped(driver, 2)
    assert ctypes.string_at(address, 7) == b"rubbish"
    driver.zero(address, N)
    ctypes.memset(address + N, 5, 1)
    assert ctypes.string_at(address, 2) == b"\5\0"


def test_processes_of_a_card_see_the_same_memory() -> None:
    card = FakeCard(nbytes=4 * N)
    one, two = FakeDriver(card), FakeDriver(card)
    address, handle = mapped(one)
    fd = one.export(handle)
    other, theirs = two.reserve(N), two.import_(fd)
    os.close(fd)
    two.map(other, N, 0, theirs)
    two.set_access(other, N, writable=False)
    one.zero(address, N)
    assert ctypes.string_at(other, 7) == bytes(7)
    assert one.memory() == two.memory() == (3 * N, 4 * N)


def test_a_copy_is_done_when_its_stream_was_waited_for(driver: FakeDriver) -> None:
    address, _ = mapped(driver)
    driver.zero(address, N)
    source, stream = driver.pin(4096), driver.stream()
    ctypes.memmove(source, b"hello", 5)
    driver.copy(address, source, 5, stream)
    assert ctypes.string_at(address, 5) == bytes(5)
    driver.synchronize(stream)
    assert ctypes.string_at(address, 5) == b"hello"
