"""What commands share: the registry of the invocation, and printing JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from shuntserve_core.registry import Registry


def registry_of(ctx: click.Context) -> Registry:
    """The plugins of this invocation, less the disabled ones."""
    return Registry(disabled=ctx.find_root().obj or ())


def print_json(value: Any) -> None:
    """Print JSON that a program can read: keys in their order, numbers in full."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
