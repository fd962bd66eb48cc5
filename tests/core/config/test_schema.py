"""The JSON schema: valid, and in agreement with the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli

from shuntserve_core.config.schema import document_schema
from shuntserve_core.registry import Registry

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return document_schema(Registry())


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_it_accepts_the_examples(file: Path, schema: dict[str, Any]) -> None:
    jsonschema.validate(tomli.loads(file.read_text()), schema)


@pytest.mark.parametrize(
    "text",
    [
        "[model]\nnam = 'x'",
        "[[cluster]]\ninstance = 'g6.xlarge'\ncount = -1",
        "[objective]\nkind = 'speed'",
        "[estimator]\nmemory_fractoin = 0.9",
        "[estimator]\nmemory_fraction = 1.5",
        "[unknown]",
    ],
)
def test_it_refuses_mistakes(text: str, schema: dict[str, Any]) -> None:
    sound = {"model": {}, "workload": {}, "cluster": []}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sound, **tomli.loads(text)}, schema)


def test_every_key_has_a_description(schema: dict[str, Any]) -> None:
    assert list(undescribed(schema, "")) == []


def undescribed(schema: dict[str, Any], path: str) -> list[str]:
    """Paths of all keys without a description."""
    found = []
    for key, inner in schema.get("properties", {}).items():
        alternatives = inner.get("anyOf", [inner])
        if not all(one.get("description", "").rstrip(": ") for one in alternatives):
            found.append(f"{path}.{key}")
        for one in alternatives:
            found += undescribed(one, f"{path}.{key}")
            found += undescribed(one.get("items", {}), f"{path}.{key}[]")
    return found
