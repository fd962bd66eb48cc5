"""Prompts as the front door makes them, beside those of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shuntserve_core.testing.chats import Expected, reference
from shuntserve_core.text import ChatTemplate, TextTokenizer
from shuntserve_core.text.template import AMPLE
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.prompts import Bounds
from shuntserve_plugins.frontdoors.openai.reading import read

BOUNDS = Bounds("model", 1 << 20, 1, AMPLE)


class Both:
    """One template in the front door and in transformers."""

    def __init__(self, source: str, tokenizer: TextTokenizer, hf: Any) -> None:
        self._source = source
        self._hf = hf
        template = ChatTemplate(source, hf.special_tokens_map)
        self._ours = TextTokenizer(tokenizer._tokenizer, template=template)

    def ours(self, chat: Mapping[str, Any]) -> str:
        """The prompt of a body; raises `ApiError` where the body is refused."""
        answer = read("tokenize", self._ours, BOUNDS, json.dumps(chat).encode()).answer
        return self._ours.decode(json.loads(answer)["tokens"], skip_special_tokens=False)

    def answered(self, chat: Mapping[str, Any]) -> str | None:
        """The same, or None where it is refused."""
        try:
            return self.ours(chat)
        except ApiError:
            return None

    def theirs(self, chat: Mapping[str, Any], messages: Any = None) -> str:
        """What transformers makes of a body, or of other messages."""
        variables = chat.get("chat_template_kwargs", {})
        continues = chat.get("continue_final_message", False)
        prompt: str = self._hf.apply_chat_template(
            messages or chat["messages"],
            tools=chat.get("tools"),
            documents=chat.get("documents"),
            chat_template=self._source,
            add_generation_prompt=chat.get("add_generation_prompt", not continues),
            continue_final_message=continues,
            tokenize=False,
            **variables,
        )
        return prompt

    def expected(self, chat: Mapping[str, Any]) -> Expected:
        """What the prompt must be."""
        return reference(self._source, chat, lambda messages: self.theirs(chat, messages))
