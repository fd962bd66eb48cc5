"""What plan, push, and the engines do with each family and form of checkpoint.

    python benchmarks/checkpoint_table.py --results results.json             # without vLLM
    python benchmarks/checkpoint_table.py --results results.json --vllm --most 12   # a portion
    python benchmarks/checkpoint_table.py --results results.json --write

Small random models are made with transformers.  Where an engine serves one, its greedy tokens
(24 each, for 8 prompts) are compared with transformers' in float32: they are the same, or the
checkpoint was refused before, with the reason.  A third outcome is a fault, and ends this with 1.
`--write` makes docs/reference/checkpoints.md of the results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from shuntserve_core.types.request import EngineRequest
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.core.weights import outcomes
from tests.core.weights.kinds import Kind, kinds
from tests.core.weights.outcomes import DONE, Stored, Verdict
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import serving, together

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "checkpoints.md"
Rows = Iterator[tuple[str, dict[str, str]]]
COLUMNS = ("plan", "push", "embedded", "vLLM")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON; kept and added to")
    parser.add_argument("--vllm", action="store_true", help="fill in the column of vLLM")
    parser.add_argument("--most", type=int, default=10**6, help="of checkpoints in this portion")
    parser.add_argument("--only", default="", help="part of the name of a kind; done anew")
    parser.add_argument("--write", action="store_true", help="only write the page")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.write:
        PAGE.write_text(page(results))
        return 0
    chosen = [kind for kind in kinds() if options.only in kind.name]
    column = "vLLM" if options.vllm else "embedded"
    if not options.only:
        chosen = [kind for kind in chosen if column not in results.get(kind.name, {})]
    chosen = chosen[: options.most]
    with outcomes.quiet():
        fill = fill_vllm if options.vllm else fill_rest
        for name, row in fill(chosen):
            results.setdefault(name, {}).update(row)
            options.results.write_text(json.dumps(results, indent=1))
            print(name, "|", " | ".join(f"{k}: {v}" for k, v in row.items()), flush=True)
    return 1 if faults(results) else 0


def faults(results: dict[str, dict[str, str]]) -> list[str]:
    """What is neither exact nor refused."""
    return [
        f"{name}: {column}: {text}"
        for name, row in results.items()
        for column, text in row.items()
        if not Verdict(text).sound
    ]


def fill_rest(chosen: Sequence[Kind]) -> Rows:
    for kind in chosen:
        with tempfile.TemporaryDirectory(prefix="table-") as made:
            folder = Path(made)
            source = kind.make(folder / "m")
            push, stored = outcomes.pushed(source, folder)
            plan = outcomes.planned(source, folder, "vllm")
            mine = outcomes.planned(source, folder, "embedded")
            embedded = outcomes.served(stored, [mine, push], outcomes.embedded)
            yield kind.name, {"plan": plan.text, "push": push.text, "embedded": embedded.text}


def fill_vllm(chosen: Sequence[Kind]) -> Rows:
    with TemplateForTests(Vllm()) as template:
        for kind in chosen:
            with tempfile.TemporaryDirectory(prefix="table-") as made:
                folder = Path(made)
                source = kind.make(folder / "m")
                push, stored = outcomes.pushed(source, folder)
                plan = outcomes.planned(source, folder, "vllm")
                began = time.monotonic()
                verdict = outcomes.served(stored, [plan, push], _serving(template, folder))
                print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
                yield kind.name, {"vLLM": verdict.text}


def _serving(template: TemplateForTests, folder: Path) -> outcomes.Run:
    return lambda stored, asked: asyncio.run(_serve(stored, asked, template, folder))


async def _serve(
    stored: Stored, asked: Sequence[EngineRequest], template: TemplateForTests, folder: Path
) -> list[tuple[int, ...]]:
    model = StoredModel(stored.spec, stored.directory, stored.weights, stored.checkpoint)
    sockets = folder / "s"
    sockets.mkdir()
    with Stores(sockets, 1) as stores:
        launch = launch_of(model, [(0, 2)], [1], stores)
        async with asyncio.timeout(120), serving(launch, template) as (_, link):
            return [output.tokens for output in await together(link, asked)]


HEAD = """\
# Checkpoints: what is served, and what is refused

Written by `benchmarks/checkpoint_table.py`, {date}: transformers {transformers}, vLLM {vllm} on a
CPU, gguf {gguf}.

Each line is a small random model that transformers saved, or a GGUF file of one. `plan` stands for
`check` and `serve` too, and is asked for the vLLM engine. Where an engine served a checkpoint, its
greedy tokens, {tokens} for each of {prompts} prompts, were compared with those of transformers, in
float32. Of {lines} checkpoints the embedded engine served {embedded} and vLLM {served}, each
**exactly**; the others were refused, by `plan`, by `push` or by both. {third}
Plans of a GGUF file read the `config.json` that a push makes of it: where that is refused, there is
none.

"""


def page(results: dict[str, dict[str, str]]) -> str:
    """The page in the manual."""
    rows = {kind: results.get(kind.name, {}) for kind in kinds()}
    count = {c: sum(row.get(c) == outcomes.EXACT for row in rows.values()) for c in COLUMNS}
    wrong = faults(results)
    head = HEAD.format(
        date=datetime.now(UTC).date(),
        transformers=version("transformers"),
        vllm=version("vllm").partition("+")[0],
        gguf=version("gguf"),
        tokens=outcomes.TOKENS,
        prompts=outcomes.PROMPTS,
        lines=len(rows),
        embedded=count["embedded"],
        served=count["vLLM"],
        third="There was no third outcome." if not wrong else f"Faults: {'; '.join(wrong)}.",
    )
    lines = [f"| family | form | {' | '.join(COLUMNS)} |", "| --- " * (2 + len(COLUMNS)) + "|"]
    notes: dict[str, int] = {}
    for kind, row in rows.items():
        cells = [_cell(row.get(column, "not tried"), notes) for column in COLUMNS]
        lines.append(f"| {kind.family} | {kind.form} | {' | '.join(cells)} |")
    reasons = [f"{number}. {_escaped(reason)}" for reason, number in notes.items()]
    return head + "\n".join([*lines, "", "Refused, because:", "", *reasons]) + "\n"


def _cell(text: str, notes: dict[str, int]) -> str:
    if text == DONE.text:
        return "yes"
    if text.startswith("refused: "):
        reason = text.removeprefix("refused: ")
        return f"no ({notes.setdefault(reason, len(notes) + 1)})"
    return f"**{text}**" if text == outcomes.EXACT else text


def _escaped(text: str) -> str:
    return text.replace("_", "\\_").replace("*", "\\*").replace("<", "\\<")


if __name__ == "__main__":
    sys.exit(main())
