"""What we lean on inside vLLM is as it was when we read it."""

from __future__ import annotations

import importlib.metadata

import pytest

from shuntserve_plugins.engines.vllm.engine import VERSION
from shuntserve_plugins.engines.vllm.symbols import SYMBOLS, Symbol, source_digest


def test_the_version_is_the_one_that_we_know() -> None:
    assert importlib.metadata.version("vllm").split("+")[0] == VERSION


@pytest.mark.parametrize("symbol", SYMBOLS, ids=lambda symbol: symbol.label)
def test_it_has_not_changed(symbol: Symbol) -> None:
    assert source_digest(symbol) == symbol.digest, f"used in {symbol.used}"


def test_a_change_is_noticed() -> None:
    known = SYMBOLS[0]
    assert source_digest(Symbol(known.module, "Executor.check_health", "", "")) != known.digest
    with pytest.raises(LookupError, match="not there any more"):
        source_digest(Symbol(known.module, "Executor.gone", "", ""))
