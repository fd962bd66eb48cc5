"""The hub out of reach: one line, at once, and nobody else's lines."""

from __future__ import annotations

import logging
import socket
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.hub import out_of_reach, quietly
from shuntserve_core.weights.sources.hub import download


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_hub_that_is_not_there_is_not_tried_again(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []
    client = huggingface_hub.snapshot_download

    def download_once(name: str, **options: Any) -> str:
        asked.append(options["local_files_only"])
        return str(client(name, **options))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_once)
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached") as caught:
        download("org/not-in-the-cache", endpoint=nobody)
    assert asked == [True]  # the cache only, which makes no connection to try again
    assert "name a folder" in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_who_is_offline_by_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert out_of_reach("http://127.0.0.1:1") == "HF_HUB_OFFLINE is set"


def test_one_that_answers_is_in_reach(nobody: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert out_of_reach(f"http://127.0.0.1:{server.getsockname()[1]}") == ""
    assert "cannot be reached" in out_of_reach(nobody)


def test_the_clients_lines_are_held_back_only_while_it_is_asked() -> None:
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    with quietly():
        assert not logging.getLogger("huggingface_hub.utils").isEnabledFor(logging.WARNING)
    assert logger.level == before
