"""`kill -9` at any moment of a push, and then a push again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve_core.interfaces.store import WeightStore
from shuntserve_core.registry import Registry
from shuntserve_core.testing.s3_servers import S3Server
from shuntserve_core.weights import load_manifest, models_in, open_store
from shuntserve_core.weights.inventory import remove_model
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source
from shuntserve_core.weights.verifying import verify_model
from shuntserve_plugins.storage import directory
from tests.core.weights import push_slowly
from tests.core.weights.models import write_llama

KILLS = 20
WORKERS = 2
DIRECTORY_PART = 1 << 20
S3_PART = 5 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 MB; each of its two tables takes two parts of S3, or six of a directory."""
    path = tmp_path_factory.mktemp("kill") / "tiny"
    return write_llama(path, layers=3, vocab=5500, hidden=512, intermediate=512, head_dim=32)


def push_and_kill(checkpoint: Path, url: str, part: int, moment: int) -> int:
    """Kill the push once it has sent `moment` bytes; what it said it had sent by then."""
    command = [sys.executable, push_slowly.__file__, str(checkpoint), url, str(part), str(WORKERS)]
    sent = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sent = int(line)
            if sent >= moment:
                break
        process.kill()
    return sent


def check_resuming(checkpoint: Path, url: str, store: WeightStore, part: int) -> None:
    source, name = open_source(str(checkpoint))
    plan = plan_push(source, name, [1])
    chooser = random.Random(part)
    for moment in [chooser.randrange(plan.total_bytes) for _ in range(KILLS)]:
        sent = push_and_kill(checkpoint, url, part, moment)
        assert models_in(store) == [], "a push that was killed shows no model"
        again = push_model(store, source, plan, workers=WORKERS)
        assert sent + again.sent_bytes <= plan.total_bytes + WORKERS * part
        manifest = load_manifest(store, name)
        report = verify_model(store, manifest, deep=True)
        assert (report.problems, report.unknown) == ((), ())
        assert store.discard_unfinished(name.prefix) == 0
        remove_model(store, name)


@pytest.mark.timeout(240)
def test_directory(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "PART_BYTES", DIRECTORY_PART)
    store = open_store(str(tmp_path), Registry())
    check_resuming(checkpoint, str(tmp_path), store, DIRECTORY_PART)


@pytest.mark.timeout(240)
def test_s3(checkpoint: Path, seaweed_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in seaweed_server.environment.items():
        monkeypatch.setenv(key, value)
    seaweed_server.client().create_bucket(Bucket="kill")
    url = seaweed_server.url("kill") + "&part_mib=5"
    store = open_store(url, Registry())
    check_resuming(checkpoint, url, store, S3_PART)
    store.close()
