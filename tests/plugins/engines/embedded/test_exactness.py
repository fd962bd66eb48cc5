"""Results are equal to the last bit, whatever is computed where, beside what and in which steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from shuntserve_core.types.request import EngineRequest, StepOutput, TokenLogprob
from tests.plugins.engines.embedded.local import DEVICES, LocalEngine
from tests.plugins.engines.embedded.models import KINDS, build, greedy_of, reference
from tests.plugins.engines.embedded.processes import Model
from tests.plugins.engines.embedded.requests import Said, request, resumed, said, variety

PLACEMENTS: list[tuple[list[tuple[int, int]], list[int]]] = [
    ([(0, 4)], [2]),
    ([(0, 4)], [4]),
    ([(0, 1), (1, 4)], [1, 1]),
    ([(0, 3), (3, 4)], [4, 1]),
    ([(0, 1), (1, 3), (3, 4)], [1, 4, 2]),
    ([(0, 1), (1, 2), (2, 3), (3, 4)], [1, 2, 1, 4]),
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    dtype = {"llama": torch.float16, "qwen3": torch.bfloat16}[request.param]
    return build(request.param, tmp_path_factory.mktemp("model"), dtype)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(model: Model, device: str) -> Iterator[LocalEngine]:
    engine = LocalEngine(model, [(0, 4)], [1], device=device)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def undisturbed(whole: LocalEngine) -> dict[str, Said]:
    """Each request on its own, on one rank."""
    return {r.id: said(whole.run([r])[r.id]) for r in variety(17)}


@pytest.mark.parametrize(("layers", "degrees"), PLACEMENTS)
def test_placement_and_company_change_nothing(
    model: Model,
    device: str,
    undisturbed: dict[str, Said],
    layers: list[tuple[int, int]],
    degrees: list[int],
) -> None:
    engine = LocalEngine(model, layers, degrees, device=device)
    together = engine.run(variety(17))
    engine.close()
    assert {name: said(steps) for name, steps in together.items()} == undisturbed


@pytest.mark.parametrize("chunk", [1, 7, 16, 33])
def test_the_cutting_of_prompts_changes_nothing(
    model: Model, device: str, undisturbed: dict[str, Said], chunk: int
) -> None:
    engine = LocalEngine(model, [(0, 4)], [1], max_chunk=chunk, device=device)
    together = engine.run(variety(17))
    engine.close()
    assert {name: said(steps) for name, steps in together.items()} == undisturbed


def test_too_little_kv_memory_changes_nothing(
    model: Model, device: str, undisturbed: dict[str, Said]
) -> None:
    engine = LocalEngine(model, [(0, 4)], [1], blocks=6, max_length=96, device=device)
    together = engine.run(variety(17))
    engine.close()
    assert {name: said(steps) for name, steps in together.items()} == undisturbed


def test_resuming_after_any_token_changes_nothing(
    whole: LocalEngine, undisturbed: dict[str, Said]
) -> None:
    for original in variety(7):
        expected = undisturbed[original.id]
        tokens = [token for token, _ in expected]
        for cut in range(len(tokens)):
            steps = whole.run([resumed(original, tokens[:cut])])[original.id]
            assert said(steps) == expected[cut:], f"{original.id} cut after {cut}"


def test_a_finished_request_resumes_to_its_end(whole: LocalEngine) -> None:
    original = request("done", max_tokens=3)
    tokens = whole.tokens(original)
    steps = whole.run([resumed(original, tokens)])[original.id]
    assert [(step.tokens, step.finish) for step in steps] == [((), "length")]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers(
    kind: str, device: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = build(kind, tmp_path_factory.mktemp(kind), torch.float32)
    expected = reference(model)
    degrees = [2, 4] if kind != "qwen2" else [1, 2]
    engine = LocalEngine(model, [(0, 1), (1, 4)], degrees, device=device)
    prompts = [request(f"prompt {i}") for i in range(10)]
    together = engine.run(prompts)
    engine.close()
    for prompt in prompts:
        tokens = [token for token, _ in said(together[prompt.id])]
        assert greedy_of(expected, prompt.prompt, tokens) == tokens


def prompts_to_score() -> list[EngineRequest]:
    lengths = (1, 2, 15, 16, 17, 40, 64)
    return [request(f"s{n}", length=n, max_tokens=4, prompt_logprobs=3) for n in lengths]


def scores(steps: Sequence[StepOutput]) -> list[TokenLogprob]:
    return [entry for step in steps for entry in step.prompt_logprobs]


@pytest.mark.parametrize(
    ("layers", "degrees", "limits"),
    [
        ([(0, 3), (3, 4)], [4, 1], {}),
        ([(0, 1), (1, 3), (3, 4)], [1, 4, 2], {}),
        ([(0, 4)], [1], {"max_chunk": 1}),
        ([(0, 4)], [1], {"max_chunk": 7}),
        ([(0, 4)], [1], {"blocks": 7, "max_length": 96}),
    ],
)
def test_logprobs_of_prompts_are_the_same_anywhere(
    model: Model,
    whole: LocalEngine,
    layers: list[tuple[int, int]],
    degrees: list[int],
    limits: dict[str, int],
) -> None:
    alone = {r.id: whole.run([r])[r.id] for r in prompts_to_score()}
    engine = LocalEngine(model, layers, degrees, **limits)
    together = engine.run([*variety(3), *prompts_to_score()])
    engine.close()
    for prompt in prompts_to_score():
        assert len(scores(alone[prompt.id])) == len(prompt.prompt) - 1
        assert scores(together[prompt.id]) == scores(alone[prompt.id])
        assert said(together[prompt.id]) == said(alone[prompt.id])


@torch.inference_mode()
def test_logprobs_of_prompts_are_those_of_transformers(model: Model, whole: LocalEngine) -> None:
    expected = reference(model)
    for prompt in prompts_to_score():
        logits = expected(torch.tensor([prompt.prompt])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        told = scores(whole.run([prompt])[prompt.id])
        for row, token, entry in zip(logprobs, prompt.prompt[1:], told, strict=False):
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert abs(int((row > row[token]).sum()) + 1 - entry.rank) <= 1
            best = row.topk(3).values.tolist()
            assert [logprob for _, logprob in entry.top] == pytest.approx(best, abs=1e-4)
