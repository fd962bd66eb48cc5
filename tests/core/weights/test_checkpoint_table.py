"""A part of the manual's table of checkpoints, made anew: exact, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.weights import outcomes
from tests.core.weights.kinds import GGUF_KEYS, kinds
from tests.core.weights.outcomes import DONE, EXACT

KINDS = {kind.name: kind for kind in kinds()}
SERVED = (
    "llama, tied embeddings",
    "llama, heads of 64, hidden 128",
    "llama, rope llama3",
    "llama, rope linear, as version 4 wrote it",
    "llama, no architectures",
    "llama, in several files",
    "llama, tensors that nobody needs",
    "llama, tied, with the table as projection",
    "llama, GGUF Q8_0",
    "llama, GGUF F16, linear rope",
    "llama, GGUF F16, tied",
    "qwen2, float16",
    "qwen2, head_dim of 64",
    "qwen2, no rope_theta",
    "qwen3, no head_dim, and heads of 128",
)
REFUSED = {
    "llama, rope dynamic": "type 'dynamic'",
    "llama, rope llama3 without its numbers": "without a number for low_freq_factor",
    "llama, rope_scaling against rope_parameters": "say different things",
    "llama, a window in its config": "sliding_window is 16",
    "llama, layer_types with windows": "sliding_attention",
    "llama, a classifier": "LlamaForSequenceClassification",
    "llama, not causal": "is_causal",
    "llama, FP8, not a word in config.json": "scale of quantised weights",
    "llama, AWQ": "quantised (awq)",
    "llama, a LoRA adapter": "LoRA adapter",
    "mistral, attention_bias": "has no such biases",
    "qwen3, windows in the upper layer": "use_sliding_window",
    "gemma2, bfloat16": "'gemma2'",
    "gpt2, bfloat16": "'gpt2'",
    "deepseek_v3, bfloat16": "'deepseek_v3'",
    **{f"llama, GGUF F16, {key} {value}": key for key, value in GGUF_KEYS.items()},
}
OTHERWISE_IN_VLLM = {
    "llama, heads of 16": "on a CPU, vLLM has kernels for 32",
    "llama, rope yarn, contexts too long": "more than yarn's factor makes, 64",
    "qwen2, head_dim of 64": "takes hidden_size / heads",
    "qwen2, windows that no layer has": "use_sliding_window",
    "qwen3, attention_bias": "no bias in the output projection",
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with outcomes.quiet():
        yield


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_is_served_exactly(name: str, tmp_path: Path) -> None:
    source = KINDS[name].make(tmp_path / "m")
    push, stored = outcomes.pushed(source, tmp_path)
    plan = outcomes.planned(source, tmp_path, "embedded")
    assert outcomes.served(stored, [plan, push], outcomes.embedded).text == EXACT


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    source = KINDS[name].make(tmp_path / "m")
    push, _ = outcomes.pushed(source, tmp_path)
    plans = [outcomes.planned(source, tmp_path, engine) for engine in ("embedded", "vllm")]
    reasons = [push.text] if push != DONE else [plan.text for plan in plans]
    for reason in reasons:
        assert reason.startswith("refused: ")
        assert REFUSED[name] in reason


@pytest.mark.parametrize("name", OTHERWISE_IN_VLLM)
def test_what_vllm_would_compute_otherwise_is_refused_for_it(name: str, tmp_path: Path) -> None:
    source = KINDS[name].make(tmp_path / "m")
    said = outcomes.planned(source, tmp_path, "vllm").text
    assert said.startswith("refused: ")
    assert OTHERWISE_IN_VLLM[name] in said


def test_the_manual_has_every_line_and_no_third_outcome() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "checkpoints.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [", ".join(row[:2]) for row in rows[2:]] == list(KINDS)
    for row in rows[2:]:
        unread = ("not reached",) if row[3].startswith("no (") else ()
        known = ("yes", "**exact**", *unread)
        assert all(cell in known or cell.startswith("no (") for cell in row[2:]), row
    served = {", ".join(row[:2]) for row in rows[2:] if row[4] == "**exact**"}
    assert set(SERVED) <= served
    assert not set(REFUSED) & served
