"""What travels on a link, and in which form.

| kind | from | rest of the array |
| --- | --- | --- |
| HELLO | client | protocol name, version, nonce |
| CHALLENGE | server | version, nonce, proof |
| PROOF | client | proof |
| WELCOME | server | `EngineInfo` as a map, state |
| SUBMIT | client | id, prompt, output (little-endian uint32), sampling (what is set), cache salt |
| ABORT | client | id |
| ACTIVATE | client | |
| PING | client | number |
| PONG | server | number, and the fields of `EngineLoad` in their order |
| STEP | server | one item for each request in the step |
| STATE | server | state |
| GOODBYE | both | reason |

An item of a STEP is (id, tokens, finish, logprobs, error, bad request, logprobs of the prompt), cut
off behind its last item that says something; a logprob is (logprob, token, logprob, token,
logprob...), and of the prompt (rank, logprob, token, logprob...).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Any

import attrs
from attrs import evolve
from cattrs import Converter

from shuntserve_core.link.frames import Message, ProtocolError
from shuntserve_core.types.request import (
    FINISH_REASONS,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    SamplingParams,
    StepOutput,
    TokenLogprob,
)

MAX_SCORES = 1 << 16
"""Numbers in a message that has logprobs of a prompt: at most 9 bytes each."""

HELLO, CHALLENGE, PROOF, WELCOME = 1, 2, 3, 4
SUBMIT, ABORT, ACTIVATE, PING, PONG, STEP, STATE, GOODBYE = 16, 17, 18, 19, 20, 21, 22, 23

# An engine that ignored a parameter it does not know would make a silent difference.
_converter = Converter(forbid_extra_keys=True, detailed_validation=False)
_SAMPLING = tuple(
    (f.name, {} if f.name == "logit_bias" else f.default) for f in attrs.fields(SamplingParams)
)


def submit_message(request: EngineRequest, wire_id: str) -> Message:
    """The SUBMIT of a request.  Raises `ProtocolError` for tokens that are no token ids."""
    sampling = {
        name: value
        for name, default in _SAMPLING
        if (value := getattr(request.sampling, name)) != default
    }
    prompt, output = _pack(request.prompt), _pack(request.output)
    return (SUBMIT, wire_id, prompt, output, sampling, request.cache_salt)


def submitted(message: Message) -> EngineRequest:
    """The request in a SUBMIT.  Raises `ProtocolError`."""
    try:
        _, request_id, prompt, output, sampling, cache_salt = message
        return EngineRequest(
            id=_text(request_id),
            prompt=_unpack(prompt),
            sampling=_converter.structure(sampling, SamplingParams),
            output=_unpack(output),
            cache_salt=_text(cache_salt),
        )
    except ProtocolError:
        raise
    except Exception as error:  # cattrs raises many kinds for values of wrong types
        raise ProtocolError(f"malformed request: {type(error).__name__}: {error}") from error


def step_item(output: StepOutput) -> Message:
    """A request's item in a STEP."""
    if output.finish is None and not output.logprobs and not output.prompt_logprobs:
        return (output.id, output.tokens)
    logprobs = tuple(map(_flat, output.logprobs))
    if not output.error and not output.prompt_logprobs:
        return (output.id, output.tokens, output.finish, logprobs)
    item = (output.id, output.tokens, output.finish, logprobs, output.error, output.bad_request)
    if not output.prompt_logprobs:
        return item
    return (*item, tuple((entry.rank, *_flat(entry)) for entry in output.prompt_logprobs))


def _flat(entry: TokenLogprob) -> tuple[float, ...]:
    return (entry.logprob, *(part for pair in entry.top for part in pair))


def _logprob(flat: Message, rank: int = 0) -> TokenLogprob:
    return TokenLogprob(flat[0], tuple(zip(flat[1::2], flat[2::2], strict=True)), rank)


def bounded(output: StepOutput) -> Iterator[StepOutput]:
    """The output in parts whose messages have a bounded size: a long prompt has more logprobs than
    one message holds."""
    scores = output.prompt_logprobs
    if scores:
        count = max(1, MAX_SCORES // (2 + 2 * max(len(entry.top) for entry in scores)))
        while len(scores) > count:
            yield StepOutput(output.id, prompt_logprobs=scores[:count])
            scores = scores[count:]
        output = evolve(output, prompt_logprobs=scores)
    yield output


def step_output(item: Message, request_id: str) -> StepOutput:
    """The output in an item of a STEP, for its request.  Raises `ProtocolError`."""
    try:
        if type(item[1]) is not tuple:
            raise ProtocolError("malformed step: tokens are an array")
        if len(item) == 2:
            return StepOutput(request_id, item[1])
        finish = item[2]
        logprobs = tuple(map(_logprob, item[3]))
        if finish not in FINISH_REASONS and finish is not None:
            raise ProtocolError(f"unknown finish reason {finish!r}")
        error, bad_request = item[4:6] if len(item) > 4 else ("", False)
        scores = item[6] if len(item) > 6 else ()
        prompt = tuple(_logprob(entry[1:], int(entry[0])) for entry in scores)
        return StepOutput(request_id, item[1], logprobs, finish, error, bad_request, prompt)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ProtocolError(f"malformed step: {error}") from error


def pong_message(number: int, load: EngineLoad) -> Message:
    """The answer to a PING."""
    return (PONG, number, *attrs.astuple(load))


def pong_load(message: Message) -> EngineLoad:
    """The load in a PONG.  Raises `ProtocolError`."""
    try:
        _, _, running, waiting, kv_used, *counts = message
        return EngineLoad(int(running), int(waiting), float(kv_used), *map(int, counts))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"malformed pong: {error}") from error


def info_map(info: EngineInfo) -> dict[str, Any]:
    """An `EngineInfo` as plain data."""
    return attrs.asdict(info) | {"features": sorted(map(str, info.features))}


def info_of(data: Any) -> EngineInfo:
    """An `EngineInfo` from plain data.  Raises `ProtocolError`."""
    try:
        return _converter.structure(data, EngineInfo)
    except Exception as error:
        raise ProtocolError(f"malformed engine info: {type(error).__name__}: {error}") from error


def text_of(message: Message) -> str:
    """The one string that the message carries.  Raises `ProtocolError`."""
    if len(message) != 2:
        raise ProtocolError(f"message of kind {message[0]} has {len(message)} items, not 2")
    return _text(message[1])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"expected a string, got {type(value).__name__}")
    return value


def _pack(tokens: tuple[int, ...]) -> bytes:
    try:
        return _little_endian(array("I", tokens)).tobytes()
    except (TypeError, OverflowError) as error:
        raise ProtocolError(f"a token id is not a 32-bit number: {error}") from error


def _unpack(data: Any) -> tuple[int, ...]:
    if not isinstance(data, bytes):
        raise ProtocolError(f"expected token ids as bytes, got {type(data).__name__}")
    tokens = array("I")
    tokens.frombytes(data)
    return tuple(_little_endian(tokens))


def _little_endian(tokens: array[int]) -> array[int]:
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
