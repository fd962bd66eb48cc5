"""Frames survive any cutting, and garbage is noticed, never misread."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.link import messages as m
from shuntserve_core.link.frames import FrameDecoder, ProtocolError, encode
from shuntserve_core.types.request import (
    FINISH_REASONS,
    EngineRequest,
    SamplingParams,
    StepOutput,
    TokenLogprob,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MESSAGES = st.lists(st.tuples(st.integers(0, 99), PLAIN), max_size=5)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple)
FLOATS = st.floats(-100, 0)


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.lists(st.integers(1, 30), min_size=1))
def test_messages_survive_any_cutting(messages: list[tuple[int, Any]], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    decoder, got, position = FrameDecoder(), [], 0
    while position < len(stream):
        size = cuts[len(got) % len(cuts)]
        got += decoder.feed(stream[position : position + size])
        position += size
    assert got == messages


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_nothing(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        for message in FrameDecoder(limit=100).feed(data):
            assert isinstance(message[0], int)


@settings(max_examples=150, deadline=None)
@given(PLAIN | st.lists(PLAIN, max_size=6).map(tuple))
def test_malformed_bodies_are_protocol_errors(body: Any) -> None:
    message = (m.SUBMIT, *(body if isinstance(body, tuple) else (body,)))
    for read in (m.submitted, m.pong_load, m.info_of, m.text_of):
        with contextlib.suppress(ProtocolError):
            read(message)
    with contextlib.suppress(ProtocolError):
        m.step_output(message, "r")


@settings(max_examples=60, deadline=None)
@given(
    TOKENS,
    TOKENS,
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 10**6),
        temperature=st.floats(0, 2),
        seed=st.integers(0, 2**63 - 1),
        logit_bias=st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100)),
        stop_token_ids=TOKENS,
        logprobs=st.none() | st.integers(0, 20),
    ),
    st.text(max_size=40),
)
def test_requests_survive(
    prompt: tuple[int, ...], output: tuple[int, ...], sampling: SamplingParams, salt: str
) -> None:
    request = EngineRequest("r", prompt, sampling, output, salt)
    (message,) = FrameDecoder().feed(encode(m.submit_message(request, "r")))
    assert m.submitted(message) == request


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        StepOutput,
        id=st.just("r"),
        tokens=TOKENS,
        logprobs=st.lists(
            st.builds(TokenLogprob, FLOATS, st.lists(st.tuples(st.integers(0, 9), FLOATS)))
        ),
        finish=st.none() | st.sampled_from(("stop", "length")),
    )
    | st.builds(
        StepOutput,
        id=st.just("r"),
        finish=st.just("error"),
        error=st.text(min_size=1),
        bad_request=st.booleans(),
    )
)
def test_outputs_survive(output: StepOutput) -> None:
    (message,) = FrameDecoder().feed(encode((m.STEP, m.step_item(output))))
    assert m.step_output(message[1], "r") == output


def test_an_unknown_finish_is_refused() -> None:
    assert "dreams" not in FINISH_REASONS
    with pytest.raises(ProtocolError, match="dreams"):
        m.step_output(("r", (), "dreams", ()), "r")


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="over the limit of 10"):
        encode((1, "x" * 20), limit=10)


def test_token_ids_that_are_none_are_refused() -> None:
    request = EngineRequest("r", (-1,), SamplingParams(1))
    with pytest.raises(ProtocolError, match="32-bit"):
        m.submit_message(request, "r")


@pytest.mark.parametrize(("tokens", "alternatives"), [(0, 0), (1, 20), (5_000, 20), (300_000, 0)])
def test_logprobs_of_long_prompts_travel_in_bounded_messages(
    tokens: int, alternatives: int
) -> None:
    top = tuple((2**31 + n, -1.0 - n) for n in range(alternatives))
    entries = tuple(TokenLogprob(-float(n), top, n + 1) for n in range(tokens))
    output = StepOutput("r", (7,), finish="length", prompt_logprobs=entries)
    frames = [encode((m.STEP, m.step_item(part))) for part in m.bounded(output)]
    assert max(map(len, frames)) < 1_000_000
    got = [
        m.step_output(message[1], "r") for frame in frames for message in FrameDecoder().feed(frame)
    ]
    assert tuple(entry for part in got for entry in part.prompt_logprobs) == entries
    *before, last = got
    assert evolve(last, prompt_logprobs=()) == evolve(output, prompt_logprobs=())
    assert all(part.tokens == () and part.finish is None for part in before)
