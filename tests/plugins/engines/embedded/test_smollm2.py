"""A real model: greedy tokens are those of transformers for 50 prompts, in every placement."""

from __future__ import annotations

import pytest

from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_core.weights.quickstart import make_model_directory
from tests.core.tensorstore.processes import push
from tests.plugins.engines.embedded.local import LocalEngine
from tests.plugins.engines.embedded.models import greedy_of, reference
from tests.plugins.engines.embedded.processes import Model
from tests.plugins.engines.embedded.requests import Said, said

LINES = (
    "The capital of France is",
    "Once upon a time, there was a small",
    "def fibonacci(n):",
    "Water boils at",
    "The three laws of motion say that",
    "Dear Sir or Madam,",
    "1, 1, 2, 3, 5, 8,",
    "A haiku about the sea:",
    "Q: Why is the sky blue? A:",
    "To bake bread, you need",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("smollm2")
    made = make_model_directory(directory / "model")
    return Model(made, directory / "store", push(made, directory / "store", [1, 3]))


@pytest.fixture(scope="module")
def prompts(model: Model) -> list[EngineRequest]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.directory / "tokenizer.json"))
    texts = [f"{line} {tail}".strip() for tail in ("", "the", "and", "I", "not") for line in LINES]
    sampling = SamplingParams(max_tokens=8, temperature=0, logprobs=1)
    ids = [tuple(tokenizer.encode(text).ids) for text in texts]
    return [EngineRequest(f"p{i}", prompt, sampling) for i, prompt in enumerate(ids)]


@pytest.fixture(scope="module")
def greedy(model: Model, prompts: list[EngineRequest]) -> dict[str, Said]:
    """On one rank, all 50 together; checked against transformers, token for token."""
    engine = LocalEngine(model, [(0, 30)], [1], blocks=256, max_batch=50)
    outputs = {name: said(steps) for name, steps in engine.run(prompts).items()}
    alone = said(engine.run(prompts[:1])[prompts[0].id])
    engine.close()
    assert alone == outputs[prompts[0].id]
    expected = reference(model)
    for prompt in prompts:
        tokens = [token for token, _ in outputs[prompt.id]]
        assert greedy_of(expected, prompt.prompt, tokens) == tokens
    return outputs


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("layers", "degrees"),
    [
        ([(0, 30)], [3]),
        ([(0, 18), (18, 30)], [3, 1]),
        ([(0, 4), (4, 17), (17, 30)], [1, 3, 1]),
        ([(0, 5), (5, 12), (12, 29), (29, 30)], [1, 1, 1, 1]),
    ],
)
def test_every_placement_says_what_transformers_says(
    model: Model,
    prompts: list[EngineRequest],
    greedy: dict[str, Said],
    layers: list[tuple[int, int]],
    degrees: list[int],
) -> None:
    engine = LocalEngine(model, layers, degrees, blocks=256, max_batch=17)
    outputs = engine.run(prompts)
    engine.close()
    assert {name: said(steps) for name, steps in outputs.items()} == greedy
