"""What an engine's plugin says of the engine's steps before any engine runs."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, optional


@frozen
class EngineFacts:
    """How an engine will make its steps: said by its plugin alone, and read by estimators.

    None where the plugin does not say.
    """

    step_tokens: int | None = field(default=None, validator=optional(ge(1)))
    """Most tokens of a step."""
    sequences: int | None = field(default=None, validator=optional(ge(1)))
    """Most requests at once in a pipeline."""
    eager: bool | None = None
    """Whether kernels are launched one by one, and not as CUDA graphs."""
    chunked_prefill: bool | None = None
    """Whether steps mix decodes with chunks of prompts."""
