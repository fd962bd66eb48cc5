"""How ranks learn of each other's sockets, and what they read of what others send."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import HashStore, PrefixStore

from shuntserve_plugins.engines.peers import PeerLost
from shuntserve_plugins.engines.vllm.meeting import (
    RankStore,
    StoreTimeout,
    listen_on,
    serve_store,
)


@pytest.fixture
def stores() -> Iterator[tuple[HashStore, RankStore]]:
    ours, theirs = socket.socketpair()
    store = HashStore()
    serve_store(store, [ours])
    yield store, RankStore(theirs)
    theirs.close()


def test_a_rank_sees_the_store_of_rank_0(stores: tuple[HashStore, RankStore]) -> None:
    store, rank = stores
    store.set("address", b"\x00\xff")
    assert rank.get("address") == b"\x00\xff"
    rank.set("mine", "text")
    assert store.get("mine") == b"text"
    assert (rank.add("count", 2), store.add("count", 3)) == (2, 5)
    assert rank.compare_set("mine", "text", "other") == b"other"
    assert rank.check(["mine", "count"])
    assert not rank.check(["mine", "missing"])
    assert rank.num_keys() == store.num_keys()
    assert rank.delete_key("mine")
    assert not store.check(["mine"])


def test_torch_calls_it_as_one_of_its_own(stores: tuple[HashStore, RankStore]) -> None:
    store, rank = stores
    ours, theirs = PrefixStore("group", store), PrefixStore("group", rank)
    theirs.set("blob", b"\x80\x00")
    assert ours.get("blob") == b"\x80\x00"
    assert theirs.add("count", 1) == 1
    assert theirs.delete_key("blob")
    threading.Timer(0.1, lambda: ours.set("late", "there")).start()
    assert theirs.get("late") == b"there"
    assert theirs.clone().get("late") == b"there"


def test_waiting_ends(stores: tuple[HashStore, RankStore]) -> None:
    started = time.monotonic()
    with pytest.raises(StoreTimeout, match="no rank has set never"):
        stores[1].wait(["never"], timedelta(seconds=0.05))
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("question", ["list_keys", "__reduce__"])
def test_a_question_that_is_none_is_not_answered(question: str) -> None:
    ours, theirs = socket.socketpair()
    serve_store(HashStore(), [ours])
    with theirs, pytest.raises(PeerLost):
        RankStore(theirs)._ask(question)


def test_collectives_listen_where_the_engine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    listen_on("127.0.0.1")
    name = os.environ["GLOO_SOCKET_IFNAME"]
    assert "127.0.0.1" in {one.address for one in psutil.net_if_addrs()[name]}
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={name}"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    listen_on("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


RANK = """
import os, pickle, sys, torch, torch.distributed as dist
from shuntserve_plugins.engines.vllm.plain import read_plain
from vllm.distributed import parallel_state
rank, folder = int(sys.argv[1]), sys.argv[2]

class Bomb:
    def __reduce__(self):
        return os.mknod, (folder + "/ran",)

def broadcast(sent):
    return group.broadcast_object(sent if rank == 0 else None)

def gather(sent):
    every = [None, None]
    dist.all_gather_object(every, sent if rank == 0 else 0)
    return every[0]

def send(sent):
    return group.send_object(sent, 1) or sent if rank == 0 else group.recv_object(0)

read_plain()
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
group = parallel_state.GroupCoordinator([[0, 1]], rank, "gloo", False)
data = {"a": torch.float16, "b": (1, b"x"), "c": torch.Size([2])}
for way in (broadcast, gather, send):
    print(way.__name__, way(data) == data)
if rank == 0:  # from now on it is somebody who sends pickles
    parallel_state.pickle = pickle
    dist.distributed_c10d._pickler = pickle.Pickler
for way in (broadcast, gather, send):
    try:
        way(Bomb())
    except Exception as error:
        print(type(error).__name__, str(error)[:27])
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.timeout(240)
def test_vllm_reads_data_from_other_ranks_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(i), tmp_path], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    heard = [rank.communicate(timeout=200)[0].splitlines() for rank in ranks]
    refused = "PayloadError another rank sent no data: "
    assert heard[1][-6:] == [
        *("broadcast True", "gather True", "send True"),
        *[refused] * 3,
    ]
    assert not (tmp_path / "ran").exists()
