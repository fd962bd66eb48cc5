"""Every parameter that a request may have, and what becomes of it: one rule, and one table.

The tables are read where parameters are refused and where the reference is made; tests hold them
against the types of bodies and against OpenAI's own client.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import frozen

from shuntserve_plugins.frontdoors.openai.errors import ApiError

RULE = """\
A parameter is let through if whoever sends it gets the answer that it asks for: because it is
carried out; because it does not concern the answer (who asks, what is kept, what is cached, what
is billed); or because it asks for what happens anyway, as every `null` does.  It is refused if the
answer would be another one than it asks for, however little that shows."""


class Ruling(StrEnum):
    """What becomes of a parameter."""

    CARRIED_OUT = "carried out"
    NO_EFFECT = "let through"
    IN_PART = "some values"
    REFUSED = "refused"


@frozen
class Parameter:
    """A row of the table."""

    name: str
    ruling: Ruling
    because: str = ""
    """Why it is let through without effect, or what is refused and why; half a sentence."""
    instead: str = ""
    """What to do about a refusal, as an order; empty: leave it out."""
    openai: bool = True
    """Whether it is OpenAI's; others have vLLM's names."""
    by_type: bool = False
    """Whether the type of the field admits all that is let through, and nothing else."""

    def refusal(self, path: str) -> ApiError:
        """The error for what stands at a path inside it."""
        remedy = self.instead or f"leave out {self.name}"
        return ApiError(
            400,
            f"{path} is not supported: {self.because}; {remedy}.",
            param=path,
            code="unsupported_parameter",
        )


def _done(*names: str, openai: bool = True) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, Ruling.CARRIED_OUT, openai=openai) for name in names)


def _ignored(name: str, because: str) -> Parameter:
    return Parameter(name, Ruling.NO_EFFECT, because)


def _part(
    name: str, because: str, instead: str = "", *, openai: bool = True, by_type: bool = False
) -> Parameter:
    return Parameter(name, Ruling.IN_PART, because, instead, openai, by_type)


def _refused(name: str, because: str, instead: str = "") -> Parameter:
    return Parameter(name, Ruling.REFUSED, because, instead, by_type=True)


_COMMON = (
    *_done("model", "stream", "n", "temperature", "top_p", "stop", "seed"),
    *_done("presence_penalty", "frequency_penalty", "logit_bias", "max_tokens", "logprobs"),
    _part(
        "stream_options",
        "streams are not padded, so include_obfuscation can only be false",
        "leave out stream_options.include_obfuscation",
    ),
    _ignored("user", "it says who asks"),
)
_VLLM = _done(
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
    "structured_outputs",
    openai=False,
)
_TEMPLATE = (
    *_done("add_generation_prompt", "continue_final_message", openai=False),
    _part(
        "chat_template_kwargs",
        "variables that the model's chat template does not read would change nothing",
        openai=False,
    ),
    _part(
        "documents",
        "this model's chat template shows none",
        "put them into a message",
        openai=False,
    ),
)
_FREE_CHOICE = (
    "where the model is free to call tools, its calls would have to be read out of its text, which "
    "is not done yet"
)
_FORCE = (
    "name one function in tool_choice, give one tool and tool_choice 'required', or send "
    "tool_choice 'none'"
)

CHAT = (
    *_COMMON,
    *_done("messages", "max_completion_tokens", "top_logprobs", "response_format"),
    _part("tools", _FREE_CHOICE, _FORCE),
    _part("tool_choice", _FREE_CHOICE, _FORCE),
    _ignored("parallel_tool_calls", "where a call is forced, the answer is that one call"),
    _part(
        "reasoning_effort",
        "this model's chat template has no such setting",
        "leave it out, or set what the template has by chat_template_kwargs",
    ),
    _part(
        "verbosity",
        "this model's chat template has no such setting, and answers are as long as they get",
        "leave it out, or say in a message how long answers should be",
    ),
    _part(
        "modalities",
        "answers are text, so it can only be ['text']",
        "ask for text alone",
        by_type=True,
    ),
    _refused("audio", "answers are text"),
    _ignored("prediction", "it only makes OpenAI's answers come sooner"),
    _refused("web_search_options", "nothing here searches the web"),
    _refused("moderation", "nothing here judges texts"),
    _part("functions", "tools have taken its place", "send tools", by_type=True),
    _part(
        "function_call",
        "tool_choice has taken its place",
        "send tools and tool_choice",
        by_type=True,
    ),
    _ignored("store", "it is about what is kept; here nothing is"),
    _ignored("metadata", "it labels what is kept; here nothing is"),
    _ignored("service_tier", "it is about what is paid; here there is one tier"),
    _ignored("safety_identifier", "it says who asks"),
    _ignored("prompt_cache_key", "it is about what is cached; answers are the same"),
    _ignored("prompt_cache_retention", "it is about what is cached; answers are the same"),
    _ignored("prompt_cache_options", "it is about what is cached; answers are the same"),
    *_VLLM,
    *_TEMPLATE,
)
COMPLETION = (
    *_COMMON,
    *_done("prompt", "echo"),
    _part("best_of", "all answers are returned, so it must equal n", "leave it out, and set n"),
    _part("suffix", "texts are continued, and not filled in", by_type=True),
    *_VLLM,
    *_done("response_format", "add_special_tokens", openai=False),
)
TOKENIZE = (
    *_done("model", "prompt", "messages", "tools", "add_special_tokens", openai=False),
    *_done("return_token_strs", openai=False),
    *_TEMPLATE,
)
DETOKENIZE = _done("model", "tokens", openai=False)

TABLES: Mapping[str, Mapping[str, Parameter]] = {
    kind: {parameter.name: parameter for parameter in table}
    for kind, table in (
        ("chat", CHAT),
        ("completion", COMPLETION),
        ("tokenize", TOKENIZE),
        ("detokenize", DETOKENIZE),
    )
}
"""By kind of request, and by name."""

ELSEWHERE: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop_sequences": "stop",
    "num_return_sequences": "n",
    "enable_thinking": "chat_template_kwargs.enable_thinking",
    "reasoning": "reasoning_effort",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
}
"""What other servers and APIs call what is here too: their name, and ours."""
ABSENT = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "cache_prompt",
        "cache_salt",
        "chat_template",
        "do_sample",
        "early_stopping",
        "include_reasoning",
        "kv_transfer_params",
        "length_penalty",
        "logits_processors",
        "max_length",
        "mirostat",
        "mm_processor_kwargs",
        "num_beams",
        "priority",
        "repetition_context_size",
        "request_id",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "spaces_between_special_tokens",
        "tfs_z",
        "thinking",
        "top_a",
        "truncate_prompt_tokens",
        "typical_p",
        "use_beam_search",
        "vllm_xargs",
    }
)
"""What other servers have and this one has not, so that no hint takes them for misspelt."""
PATHS: Mapping[str, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
"""Where each kind of request is sent."""


def refused(kind: str, name: str, path: str = "") -> ApiError:
    """The error for a parameter that is not supported, or for what is at a path inside it."""
    return TABLES[kind][name].refusal(path or name)


def unknown(kind: str, name: str) -> str:
    """What to say of a name at the top of a body that nothing here has; empty if nothing is known
    of it."""
    ours = ELSEWHERE.get(name)
    if ours is not None and ours.partition(".")[0] in TABLES[kind]:
        return f"here it is called {ours!r}"
    others = [PATHS[other] for other, table in TABLES.items() if other != kind and name in table]
    if others:
        return f"it is a parameter of {' and '.join(others)} alone"
    return "nothing here does what it does elsewhere" if name in ABSENT else ""
