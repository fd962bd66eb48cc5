"""What vLLM says, in our words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

# vLLM warns of its own code while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_the_reason_of_an_error_is_passed_on() -> None:
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    from shuntserve_plugins.engines.vllm.translate import step_output

    def error_of(output: Any) -> str:
        said = step_output(output, "r")
        assert (said.id, said.finish) == ("r", "error")
        return said.error

    failed = EngineCoreOutput("1", [], finish_reason=FinishReason.ERROR)
    aborted = EngineCoreOutput("1", [], finish_reason=FinishReason.ABORT, stop_reason="no")
    assert error_of(failed) == "vLLM ended the request: error"
    assert error_of(aborted) == "vLLM ended the request: no"
    # Since 0.33 an output may carry its reason.
    fields = {name: getattr(failed, name) for name in EngineCoreOutput.__struct_fields__}
    later = SimpleNamespace(**fields | {"error": SimpleNamespace(message="bad grammar")})
    assert error_of(later) == "vLLM ended the request: bad grammar"
