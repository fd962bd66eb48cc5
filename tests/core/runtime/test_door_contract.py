"""A front door is asked for no more than its protocol names."""

from __future__ import annotations

import ast
import inspect

from shuntserve_core.interfaces.frontdoor import FrontDoor
from shuntserve_core.registered import class_trouble, protocol_members
from shuntserve_core.runtime import serve


class Door:
    """What was enough before doors were asked what protects them."""

    async def start(self, backend: object, model_dir: str, model_name: str) -> str:
        return "http://127.0.0.1:1"

    async def drain(self, deadline: float) -> None:
        return None


class Telling(Door):
    """A door that says what it opens."""

    def security_posture(self) -> list[str]:
        return ["port 1 is open"]


def test_a_door_may_say_nothing_of_what_protects_it() -> None:
    assert class_trouble("frontdoor", Door) == ""
    [line] = serve._posture_of(Door())  # type: ignore[arg-type]
    assert "does not say what it opens" in line
    assert serve._posture_of(Telling()) == ["port 1 is open"]


def test_the_protocol_names_all_that_is_called() -> None:
    called = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(serve)))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) in ("self._frontdoor", "door")
    }
    assert called == set(protocol_members(FrontDoor)) == {"start", "drain", "security_posture"}
