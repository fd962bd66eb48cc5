from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from shuntserve_core.interfaces.engine import WorkerCommand
from shuntserve_core.node import logs
from shuntserve_core.node.agent import Agent
from shuntserve_core.runtime.run import how_it_died
from tests.core.node.test_agent import hears

DIES = "import sys; print('\\x1b[31mloading', file=sys.stderr); raise RuntimeError('no room')"
SLEEPS = "import time; time.sleep(60)"


async def test_the_end_of_a_worker_tells_what_its_own_log_said_last(tmp_path: Path) -> None:
    """Each rank has a log of its own, and logs outlive the directory of sockets."""
    run_dir, log_dir = tmp_path / "run", tmp_path / "state"
    run_dir.mkdir()
    log_dir.mkdir()
    agent = Agent("n#0", 1, run_dir, log_dir=log_dir)
    try:
        events = agent.subscribe()
        commands = [
            WorkerCommand("n#0", (sys.executable, "-c", code), ranks=(rank,))
            for rank, code in ((4, SLEEPS), (5, DIES))
        ]
        await agent.start_engine("p1", commands, {})
        told = await hears(events, "exit")
    finally:
        await agent.close()
    assert (told["who"], told["code"]) == ("rank 5", 1)
    assert told["last_words"][0] == "[31mloading"
    assert told["last_words"][-1] == "RuntimeError: no room"
    assert Path(told["log"]).parent == log_dir
    assert len(list(log_dir.glob("engine-p1-*.log"))) == 2
    assert not list(run_dir.glob("*.log"))


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\n" + "\n".join(f"line {n}\n" for n in range(100)))
    words = logs.last_words(log)
    assert words == [f"line {n}" for n in range(88, 100)]
    assert logs.last_words(tmp_path / "none") == []


def test_old_logs_go_first(tmp_path: Path) -> None:
    for number in range(logs.KEPT + 5):
        path = tmp_path / f"engine-p{number}-rank 0.log"
        path.touch()
        os.utime(path, (number, number))
    (tmp_path / "agent.log").touch()
    logs.prune(tmp_path)
    assert len(list(tmp_path.iterdir())) == logs.KEPT + 1
    assert not (tmp_path / "engine-p4-rank 0.log").exists()
    assert (tmp_path / "engine-p5-rank 0.log").exists()


def test_exit_codes_in_words() -> None:
    assert logs.ended_how(1) == "ended with code 1"
    assert logs.ended_how(-9) == "was ended by signal 9 (SIGKILL)"
    assert logs.ended_how(-200) == "was ended by signal 200"


async def test_the_end_of_a_tensor_store_tells_what_its_log_said_last(tmp_path: Path) -> None:
    agent = Agent("n#0", 1, tmp_path)
    try:
        events = agent.subscribe()
        await agent._ensure_store(0)
        (tmp_path / "store-0.log").write_text("no room on this GPU\n")
        os.kill(agent._stores[0].process.pid, signal.SIGKILL)
        told = await hears(events, "store-exit")
    finally:
        await agent.close()
    assert (told["gpu"], told["code"]) == (0, -signal.SIGKILL)
    assert how_it_died("n#0", told).splitlines() == [
        "the tensor store of GPU 0 on n#0 was ended by signal 9 (SIGKILL);"
        f" the end of its log, {tmp_path}/store-0.log:",
        "    no room on this GPU",
    ]
