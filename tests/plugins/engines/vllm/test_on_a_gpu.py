"""What a rank does on a GPU and not on a CPU, with the calls to the GPU in the test's hands."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.vllm.room import Room

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing vLLM warns of is not ours
    import torch

    from shuntserve_plugins.engines.vllm import rank as ranks
    from shuntserve_plugins.engines.vllm import stage_worker
    from shuntserve_plugins.engines.vllm.payload import vocabulary

GIB = 1 << 30
FREE = "Free memory on device cuda:1 (0.5/22.3 GiB) on startup is less than desired"


class Gpu:
    """Platform and accelerator; notes what is asked for, in order."""

    dist_backend = "nccl"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.peak, self.free = GIB, 4 * GIB

    def is_cpu(self) -> bool:
        return False

    def get_device_total_memory(self, index: int) -> int:
        self.calls.append(("total", index))
        return 24 * GIB

    def snapshot(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(
            torch_allocated=100, torch_peak=100 + self.peak, free_memory=self.free
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for module in (ranks, stage_worker):
        monkeypatch.setattr(module, "current_platform", gpu)
    for name, answer in {
        "set_device_index": None,
        "reset_peak_memory_stats": None,
        "get_memory_info": (GIB // 2, 24 * GIB),
    }.items():
        monkeypatch.setattr(
            torch.accelerator,
            name,
            lambda *given, n=name, a=answer: gpu.calls.append((n, *given)) or a,
        )
    monkeypatch.setattr(stage_worker, "MemorySnapshot", gpu.snapshot)
    monkeypatch.setattr(stage_worker, "unname_shared_memory", lambda: None)
    return gpu


def worker_of(planned: int, kv_to_come: int = 0) -> Any:
    """A worker between its making and its start."""
    worker: Any = object.__new__(stage_worker.StageWorker)
    worker._room, worker._ragged, worker.local_rank = Room("node#0, GPU 1", planned), False, 1
    worker.cache_config, worker.device = SimpleNamespace(gpu_memory_utilization=0.92), "cuda:1"
    launch = SimpleNamespace(kv_bytes_on=lambda rank: 5 * GIB)
    worker._spec = SimpleNamespace(launch=launch, rank=0)
    worker._kv = SimpleNamespace(to_come=kv_to_come)
    return worker


def test_its_gpu_is_chosen_before_any_group_is_made(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL would open a context on the first GPU for every rank of the node."""
    monkeypatch.setattr(
        ranks.dist, "init_process_group", lambda backend, **_: gpu.calls.append(("group", backend))
    )
    monkeypatch.setattr(ranks, "read_plain", lambda: None)
    monkeypatch.setattr(ranks, "listen_on", lambda host: None)
    rank: Any = object.__new__(ranks.Rank)
    place = SimpleNamespace(host="host", gpu=3, tp_rank=0)
    rank._spec = SimpleNamespace(launch=SimpleNamespace(ranks=[place]), rank=0)
    rank._store, rank.config = None, None
    done = lambda *_: gpu.calls.append(("worker",))  # noqa: E731
    rank._worker = SimpleNamespace(init_worker=done, init_device=done, load_model=done)
    rank._prepare("name", vocabulary())
    assert gpu.calls[:2] == [("set_device_index", 3), ("group", "nccl")]
    assert gpu.calls[2:] == [("worker",)] * 3


def test_vllm_is_told_to_ask_for_what_was_planned_and_its_refusal_is_said_plainly(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(3 * GIB)

    def refuse(self: Any) -> None:
        assert self.cache_config.gpu_memory_utilization == 3 / 24
        raise ValueError(FREE)

    monkeypatch.setattr(stage_worker.Base, "init_device", refuse)
    with pytest.raises(UserError, match=r"0\.50 GiB are free, and an engine takes 3\.00 GiB"):
        worker.init_device()


def test_other_mistakes_are_left_alone(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise ValueError("bfloat16 is not supported")

    monkeypatch.setattr(stage_worker.Base, "init_device", fail)
    with pytest.raises(ValueError, match="bfloat16"):
        worker_of(GIB).init_device()


def test_the_largest_step_is_measured_and_held_against_the_plan(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_worker.Base, "determine_available_memory", lambda self: 0)
    worker = worker_of(2 * GIB)
    assert worker.determine_available_memory() == 5 * GIB
    assert worker._working_bytes == GIB
    assert "may not fit" not in caplog.text
    gpu.peak = 3 * GIB
    assert worker.determine_available_memory() == 5 * GIB
    assert "a successor may not fit" in caplog.text
    with pytest.raises(UserError, match=r"5\.00 GiB of KV memory do not fit into the 4\.00 GiB"):
        worker_of(4 * GIB, kv_to_come=5 * GIB).determine_available_memory()


def test_a_step_that_does_not_fit_is_no_traceback(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(self: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(stage_worker.Base, "determine_available_memory", too_much)
    with pytest.raises(UserError, match=r"largest step does not fit.*Tried to allocate 2\.00 GiB"):
        worker_of(GIB).determine_available_memory()
