"""Requests that come with tokens already generated.

They enter vLLM as output tokens, as after one of its own preemptions: the scheduler computes them
like a prompt, and everything that counts or replays output tokens (penalties, `min_tokens`, the
grammar, the position that noise is drawn by) finds them where it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from vllm.v1.request import Request
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.worker.gpu_input_batch import CachedRequestState

OUTPUT_KEY = "shuntserve_output"
"""In `SamplingParams.extra_args`: the tokens, for the ranks that sample."""


def resume(request: Request, output: Sequence[int]) -> None:
    """Give a new request of the scheduler its output tokens, before it is added."""
    request.append_output_token_ids(list(output))
    # The prefix cache may reach into these tokens, which the statistics take for impossible.
    request.prefill_stats = None
    structured = request.structured_output_request
    if structured is not None:
        compiling = structured._grammar
        assert isinstance(compiling, Future)
        structured.grammar = _advanced(compiling, request.request_id, list(output))


def _advanced(
    compiling: Future[StructuredOutputGrammar], number: str, output: list[int]
) -> Future[StructuredOutputGrammar]:
    """The grammar once it is compiled and has accepted the tokens; no request starts before."""
    ready: Future[StructuredOutputGrammar] = Future()

    def advance(done: Future[StructuredOutputGrammar]) -> None:
        try:
            grammar = done.result()
            if not grammar.accept_tokens(number, output):
                raise ValueError("the tokens generated so far do not fit the constraint")
        except Exception as error:  # fails this request alone
            ready.set_exception(error)
        else:
            ready.set_result(grammar)

    compiling.add_done_callback(advance)
    return ready


class ResumableRequests(dict[str, CachedRequestState]):
    """The requests that vLLM's model runner knows, in place of its own dict.

    Each is completed as it is put in, before the runner copies it into its batch.
    """

    def __setitem__(self, number: str, state: CachedRequestState) -> None:
        arguments = getattr(state.sampling_params, "extra_args", None) or {}
        state.output_token_ids.extend(arguments.get(OUTPUT_KEY, ()))
        super().__setitem__(number, state)
