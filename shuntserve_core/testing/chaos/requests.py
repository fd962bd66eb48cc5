"""What is asked: a mix of every class of request that must survive an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

SUBJECTS = (
    "a fox that learns to count",
    "the river behind the mill",
    "an old lighthouse keeper",
    "a robot in a garden",
    "snow in the desert",
    "the first ship to Mars",
    "a violin without strings",
    "the café at the corner of déjà vu 🎻",
    "two clocks that disagree",
    "a letter that came too late",
)
MODES: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    "penalties": {"temperature": 0.0, "presence_penalty": 0.6, "frequency_penalty": 0.4},
}


@frozen
class Asked:
    """One request: where it goes and what it says."""

    name: str
    path: str
    body: Mapping[str, Any]


def requests(model: str, mode: str, tokens: int) -> list[Asked]:
    """Distinct requests of a mode: chat and completions, stop strings, n, logprobs."""
    shapes: list[tuple[str, Mapping[str, Any]]] = [
        ("plain", {}),
        ("stop", {"stop": [" the ", "\n\n"]}),
        ("two", {"n": 2}),
        ("logprobs", {"logprobs": True, "top_logprobs": 2}),
        ("minimum", {"min_tokens": tokens - 2}),
    ]
    asked: list[Asked] = []
    for number, subject in enumerate(SUBJECTS):
        for shape, extra in shapes:
            chat = (number + len(asked)) % 2 == 0
            body: dict[str, Any] = {
                "model": model,
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **MODES[mode],
                **extra,
            }
            if chat:
                body["messages"] = [{"role": "user", "content": f"Tell me about {subject}."}]
            else:
                body["prompt"] = f"This is the story of {subject}. Once"
                if shape == "logprobs":
                    body.pop("top_logprobs")
                    body["logprobs"] = 2
            path = "/v1/chat/completions" if chat else "/v1/completions"
            asked.append(Asked(f"{mode}/{shape}/{number}", path, body))
    return asked
