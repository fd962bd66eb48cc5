"""`shuntserve status`: nodes, pipelines, what moved where and why, dollars an hour."""

from __future__ import annotations

import time
from typing import Any

import click

from shuntserve_core.cli.common import json_option, print_json
from shuntserve_core.cli.control import Control, cluster_option


@click.command()
@cluster_option
@click.option("--watch", is_flag=True, help="Show it again every second until interrupted.")
@json_option
@click.pass_context
def status(ctx: click.Context, cluster: str | None, watch: bool, as_json: bool) -> None:
    """Show the nodes and pipelines of a running cluster, and what happened to them."""
    control = Control.find(ctx, cluster)
    if as_json:
        print_json(control.call("GET", "/v1/status"))
    elif watch:
        _watch(control)
    else:
        from rich.console import Console

        Console().print(_picture(control.call("GET", "/v1/status")))


def _watch(control: Control) -> None:
    from rich.live import Live

    with Live(_picture(control.call("GET", "/v1/status")), screen=True) as live:
        while True:
            time.sleep(1.0)
            live.update(_picture(control.call("GET", "/v1/status")))


def _picture(report: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    head = (
        f"{report['model']} on {report['engine']}, strategy {report['strategy']}: "
        f"{report['throughput_rps']:.3f} requests/s predicted, ${report['cost_per_hour']:.2f}/h"
    )
    if report["waits_for"]:
        head += f"\nNot serving: {report['waits_for']}"
    return Group(Text(head), _nodes(report), _pipelines(report), _history(report))


def _nodes(report: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="Nodes", title_justify="left")
    for column in ("node", "state", "leaves in", "$/h", "holds", "weights read"):
        table.add_column(column)
    for node in report["nodes"]:
        held = [
            f"GPU {gpu}: {part['layers'][0]}:{part['layers'][1]}"
            for gpu, part in node["held"].items()
        ]
        left = f"{node['deadline'] - time.time():.0f} s" if node["deadline"] else ""
        read = f"{node['weights_read_bytes'] / 1e6:,.1f} MB"
        price = f"{node['price_per_hour']:.3f}"
        table.add_row(node["name"], node["state"], left, price, ", ".join(held), read)
    return table


def _pipelines(report: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="Pipelines", title_justify="left")
    for column in ("pipeline", "state", "requests", "copied weights", "stages"):
        table.add_column(column)
    for run in report["pipelines"]:
        stages = " > ".join(
            "{node} TP{tensor_parallel} {layers[0]}:{layers[1]}".format(**stage)
            for stage in run["stages"]
        )
        state = f"{run['state']} ({run['leaving']})" if run["leaving"] else run["state"]
        requests = f"{run['running']} + {run['waiting']}"
        copied = f"{run['weights_copied_bytes'] / 1e6:,.1f} MB"
        table.add_row(run["name"], state, requests, copied, stages)
    return table


def _history(report: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="What happened", title_justify="left", show_header=False, box=None)
    for line in report["history"][-12:]:
        facts = {key: value for key, value in line.items() if key not in ("time", "what")}
        words = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items() if value != "")
        clock = time.strftime("%H:%M:%S", time.localtime(line["time"]))
        table.add_row(clock, line["what"], Text(words))  # an engine's log is no markup
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return "; ".join(f"{key} on {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
