"""Our words for requests and tokens, and vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from shuntserve_core.types.request import EngineRequest, StepOutput, TokenLogprob
from shuntserve_core.types.request import SamplingParams as Sampling
from shuntserve_plugins.engines.vllm.resumption import OUTPUT_KEY
from shuntserve_plugins.engines.vllm.sampling import SEED_KEY

_GUIDED = {
    "json_schema": "json",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}
_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def core_request(
    request: EngineRequest, number: str, sampling: SamplingParams
) -> EngineCoreRequest:
    """The request as vLLM's engine core takes it; `number` is its id there."""
    return EngineCoreRequest(
        request_id=number,
        prompt_token_ids=list(request.prompt),
        mm_features=None,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=request.cache_salt or None,
        data_parallel_rank=None,
    )


def sampling_params(sampling: Sampling, output: Sequence[int]) -> SamplingParams:
    """What vLLM calls sampling parameters.

    Stop tokens are the request's own, never the model's: who sends requests knows the model.  The
    seed is for `sampling` alone: vLLM would make a generator of it.
    Raises ValueError for what vLLM does not take.
    """
    if output and sampling.prompt_logprobs is not None:
        # vLLM tells them with the first token, and fails if it reads on behind the prompt.
        raise ValueError("a request that has output has the logprobs of its prompt already")
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=min(sampling.min_tokens, sampling.max_tokens),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        stop_token_ids=list(sampling.stop_token_ids),
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        structured_outputs=_structured(sampling.guided),
        extra_args={SEED_KEY: sampling.seed, OUTPUT_KEY: list(output)},
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _structured(guided: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    if guided is None:
        return None
    unknown = sorted(guided.keys() - _GUIDED.keys())
    if unknown:
        raise ValueError(f"unknown kind of constraint: {', '.join(unknown)}")
    return StructuredOutputsParams(**{_GUIDED[kind]: value for kind, value in guided.items()})


def step_output(output: EngineCoreOutput, request_id: str) -> StepOutput:
    """What a step added to a request."""
    logprobs = _logprobs(output.new_logprobs)
    scores = _scores(output.new_prompt_logprobs_tensors)
    tokens = tuple(output.new_token_ids)
    if output.finish_reason is None:
        return StepOutput(request_id, tokens, logprobs, prompt_logprobs=scores)
    finish = _FINISH.get(output.finish_reason)
    if finish is None:
        said = getattr(output, "error", None)  # since 0.33
        reason = said.message if said else output.stop_reason or output.finish_reason.name.lower()
        return StepOutput(request_id, finish="error", error=f"vLLM ended the request: {reason}")
    return StepOutput(request_id, tokens, logprobs, finish, prompt_logprobs=scores)


def _logprobs(lists: LogprobsLists | None) -> tuple[TokenLogprob, ...]:
    """Of each token: its own comes first in vLLM's rows, and then the best."""
    if lists is None:
        return ()
    return tuple(
        TokenLogprob(float(values[0]), zip(map(int, ids[1:]), map(float, values[1:]), strict=True))
        for ids, values in zip(lists.logprob_token_ids, lists.logprobs, strict=True)
    )


def _scores(tensors: LogprobsTensors | None) -> tuple[TokenLogprob, ...]:
    """Of the prompt's tokens from the second on, in rows as those of generated ones."""
    if tensors is None:
        return ()
    return tuple(
        TokenLogprob(values[0], zip(ids[1:], values[1:], strict=True), rank)
        for ids, values, rank in zip(
            tensors.logprob_token_ids.tolist(),
            tensors.logprobs.tolist(),
            tensors.selected_token_ranks.tolist(),
            strict=True,
        )
    )
