"""What each part of the product does with a checkpoint: it serves it exactly, or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from shuntserve_core.config import load_config, optimizer_from, problem_from
from shuntserve_core.config.model_facts import facts_from_directory
from shuntserve_core.config.suited import refuse_or_note
from shuntserve_core.errors import UserError
from shuntserve_core.quantization import HF_QUANT_CONFIG, read_config
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_core.weights import open_store
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source
from tests.plugins.engines.embedded.local import LocalEngine
from tests.plugins.engines.embedded.processes import Model

PROMPTS, TOKENS = 8, 24
EXACT = "exact"
Run = Callable[["Stored", Sequence[EngineRequest]], list[tuple[int, ...]]]
"""Has an engine serve requests; returns the tokens of each."""


@frozen
class Stored:
    """A checkpoint, the directory that engines are given, and what was pushed."""

    checkpoint: Path
    directory: Path
    """`config.json` as the store has it."""
    weights: Path
    name: str

    @property
    def spec(self) -> ModelSpec:
        """In float32, as the reference computes."""
        facts = {**facts_from_directory(self.directory), "dtype": "float32", "kv_dtype": "float32"}
        return ModelSpec(name=self.name, **{"weight_dtype": "float32", **facts})


@frozen
class Verdict:
    """What became of one checkpoint in one place."""

    text: str
    """`exact`, `done`, `refused: ...`, or anything else, which is a fault."""

    @property
    def sound(self) -> bool:
        """Whether it is one of the two outcomes that there may be."""
        return self.text.startswith((EXACT, "done", "refused: ", "not reached"))


DONE, NOT_REACHED = Verdict("done"), Verdict("not reached")


def attempt(action: Callable[[], object]) -> Verdict:
    """Done, or refused with the reason; anything else that is raised is a fault."""
    try:
        action()
    except UserError as error:
        said = error.errors[0] if hasattr(error, "errors") and error.errors else error
        return Verdict(f"refused: {said.message}")
    except Exception as error:
        return Verdict(f"FAULT: {type(error).__name__}: {error}"[:300])
    return DONE


def model_folder(source: Path) -> Path:
    """What `model.path` is set to."""
    return source if source.is_dir() else source.parent


def planned(source: Path, folder: Path, engine: str) -> Verdict:
    """What `plan`, and so `check` and `serve`, say for this engine.

    Of a GGUF file they read the `config.json` that a push made of it.
    """
    if source.is_file():
        source = folder / "pulled"
        if not (source / "config.json").exists():
            return NOT_REACHED
    file = folder / f"{engine}.toml"
    file.write_text(
        f'[model]\npath = "{model_folder(source)}"\n'
        "[workload]\ninput_tokens = 100\noutput_tokens = 20\nmax_length = 256\n"
        '[[cluster]]\ninstance = "g6e.xlarge"\ncount = 1\n'
        f'[engine]\nname = "{engine}"\n[weights]\nstore = "store"\nmodel = "local/m"\n'
    )

    def plan() -> None:
        config = load_config(file)
        refuse_or_note(config)
        optimizer_from(config).place(problem_from(config))

    return attempt(plan)


def pushed(source: Path, folder: Path) -> tuple[Verdict, Stored]:
    """What `weights push` says; what it stored, if it did."""
    directory, weights = folder / "pulled", folder / "store"
    directory.mkdir()
    weights.mkdir()

    def push() -> None:
        store = open_store(str(weights), Registry())
        checkpoint, name = open_source(str(source))
        names.append(str(name))
        push_model(store, checkpoint, plan_push(checkpoint, name, [1]))
        for file, content in checkpoint.files.items():
            (directory / file).write_bytes(content)

    names: list[str] = []
    verdict = attempt(push)
    return verdict, Stored(model_folder(source), directory, weights, names[0] if names else "")


def requests(vocab: int = 512) -> list[EngineRequest]:
    """Greedy ones, with prompts of 5 to 68 tokens."""
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0)
    return [
        EngineRequest(
            f"r{i}", tuple((7 * i + 3 * j + j * j) % vocab for j in range(5 + 9 * i)), sampling
        )
        for i in range(PROMPTS)
    ]


def embedded(stored: Stored, asked: Sequence[EngineRequest]) -> list[tuple[int, ...]]:
    """The embedded engine, in this process."""
    model = Model(stored.directory, stored.weights, stored.name)
    engine = LocalEngine(model, [(0, 1), (1, 2)], [1, 1])
    try:
        said = engine.run(asked)
    finally:
        engine.close()
    return [tuple(t for step in said[r.id] for t in step.tokens) for r in asked]


def compared(stored: Stored, run: Run) -> Verdict:
    """Whether an engine's greedy tokens are those of transformers, in float32."""
    asked = requests()
    tokens: list[tuple[int, ...]] = []
    verdict = attempt(lambda: tokens.extend(run(stored, asked)))
    if verdict != DONE:
        return verdict
    model = _reference(stored.checkpoint)
    if any(len(answer) != TOKENS for answer in tokens):
        return Verdict(f"FAULT: answers of {sorted({len(a) for a in tokens})} tokens")
    right = sum(
        _greedy(model, request.prompt, answer) == list(answer)
        for request, answer in zip(asked, tokens, strict=True)
    )
    return Verdict(EXACT if right == len(asked) else f"FAULT: {right} of {len(asked)} the same")


def _reference(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@torch.inference_mode()
def _greedy(model: Any, prompt: Sequence[int], output: Sequence[int]) -> list[int]:
    """What transformers would have chosen at each position of this output."""
    logits = model(torch.tensor([[*prompt, *output]])).logits[0]
    choices: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    return choices


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and remarks of transformers."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)


def served(stored: Stored, verdicts: Sequence[Verdict], run: Run) -> Verdict:
    """What an engine does, where `plan` for it and `push` let it get so far."""
    for verdict in verdicts:
        if verdict not in (DONE, NOT_REACHED):
            return verdict
    return compared(stored, run)


def described(source: Path) -> str:
    """The config of a checkpoint, for whoever looks into a fault."""
    folder = model_folder(source)
    beside = " and " + HF_QUANT_CONFIG if (folder / HF_QUANT_CONFIG).exists() else ""
    return json.dumps(read_config(folder)) + beside
