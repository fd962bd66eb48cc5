"""The JSON schema of a configuration file, made from its classes and those of the plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import attrs
from attrs import AttrsInstance

from shuntserve_core.config.docstrings import field_docs
from shuntserve_core.config.document import Document
from shuntserve_core.config.fields import (
    bounds_of,
    choices_of,
    item_of,
    name_of,
    path_of,
    without_none,
)
from shuntserve_core.config.structure import OPTIONS_FIELD, issubclass_of_mapping
from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUND_KEYS = {
    ">=": "minimum",
    ">": "exclusiveMinimum",
    "<=": "maximum",
    "<": "exclusiveMaximum",
}
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def document_schema(registry: Registry) -> dict[str, Any]:
    """The schema of the whole file, as JSON.  Plugins that cannot be imported add no options."""
    schema = {"$schema": DIALECT, "title": "shuntserve configuration", **class_schema(Document)}
    for key, kind in plugin_tables().items():
        table = schema["properties"][key]
        properties = table.get("items", table)["properties"]
        for option, alternatives in _option_schemas(kind, registry).items():
            known = [*alternatives]
            properties[option] = known[0] if len(known) == 1 else {"anyOf": known}
    return schema


def plugin_tables() -> dict[str, str]:
    """Tables whose further keys are the options of a plugin, with the kind of the plugin."""
    tables = {}
    for attribute in attrs.fields(attrs.resolve_types(Document)):
        kind = without_none(attribute.type)
        cls = item_of(kind) or kind
        if attrs.has(cls) and OPTIONS_FIELD in attrs.fields_dict(attrs.resolve_types(cls)):
            mark = name_of(attrs.fields_dict(cls)["name"].type)
            assert mark is not None
            tables[attribute.name] = mark.kind
    return tables


def plugin_options(kind: str, registry: Registry) -> Iterator[tuple[str, type[AttrsInstance]]]:
    """(name, class) of each plugin of a kind that has options and can be imported."""
    for name in registry.entries(kind):
        try:
            cls = registry.get(kind, name)
        except UserError:
            continue
        if attrs.has(cls):
            yield name, cls


def class_schema(cls: type) -> dict[str, Any]:
    """The schema of one table."""
    docs = field_docs(cls)
    attributes = [a for a in attrs.fields(attrs.resolve_types(cls)) if a.init]
    properties = {
        attribute.name: _described(attribute, docs.get(attribute.name, ""))
        for attribute in attributes
        if attribute.name != OPTIONS_FIELD
    }
    required = [a.name for a in attributes if a.default is attrs.NOTHING]
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return {**schema, "additionalProperties": False}


def _option_schemas(kind: str, registry: Registry) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cls in plugin_options(kind, registry):
        for option, schema in class_schema(cls)["properties"].items():
            about = f"{kind} {name}: {schema.get('description', '')}"
            found.setdefault(option, []).append({**schema, "description": about})
    return found


def _described(attribute: attrs.Attribute[Any], doc: str) -> dict[str, Any]:
    schema = _type_schema(without_none(attribute.type))
    if doc:
        schema["description"] = doc
    if choices := choices_of(attribute):
        schema["enum"] = list(choices)
    for bound in bounds_of(attribute):
        schema[_BOUND_KEYS[bound.operator]] = bound.limit
    if attribute.default not in (attrs.NOTHING, None) and isinstance(
        attribute.default, bool | int | float | str
    ):
        schema["default"] = attribute.default
    return schema


def _type_schema(kind: Any) -> dict[str, Any]:
    if name_of(kind) or path_of(kind):
        return {"type": "string"}
    item = item_of(kind)
    if item is not None:
        return {"type": "array", "items": _type_schema(without_none(item))}
    if issubclass_of_mapping(get_origin(kind)) or get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": _type_schema(get_args(kind)[1])}
    if attrs.has(kind):
        return class_schema(kind)
    return {"type": _TYPES[kind]} if kind in _TYPES else {}
