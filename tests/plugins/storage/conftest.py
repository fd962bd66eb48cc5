from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from shuntserve_core.testing.s3_servers import S3Server, moto, seaweedfs
from shuntserve_plugins.storage.s3 import S3Store


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(params=["seaweedfs", "moto"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    name = {"seaweedfs": "seaweed_server", "moto": "moto_server"}[request.param]
    chosen: S3Server = request.getfixturevalue(name)
    for key, value in chosen.environment.items():
        monkeypatch.setenv(key, value)
    return chosen


_numbers = itertools.count()


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"bucket-{next(_numbers)}"
    server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def opened() -> Iterator[Callable[[str], S3Store]]:
    stores: list[S3Store] = []

    def open_url(url: str) -> S3Store:
        stores.append(S3Store.from_url(url))
        return stores[-1]

    yield open_url
    for store in stores:
        store.close()
