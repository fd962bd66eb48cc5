"""Text to token ids and back: tokenizers, chat templates, detokenization, stop strings.

tokenizer.py     a model's tokenizer and what its config files say about it
detokenize.py    token ids to text, a few at a time
extent.py        how long a text of so many tokens can be
stop.py          stop strings, which may straddle tokens
template.py      chat messages to a prompt, sandboxed
template_files.py  which of a model's chat templates is used, and the tokens that it may name
abilities.py     what a chat template shows, found out by rendering
conversation.py  messages as clients send them to messages as a template shows them
"""

from shuntserve_core.text.conversation import Conversations, Lost
from shuntserve_core.text.detokenize import Detokenizer
from shuntserve_core.text.stop import StopSet, StopStrings
from shuntserve_core.text.template import Budget, ChatTemplate, OutOfBudget, TemplateError
from shuntserve_core.text.tokenizer import TextTokenizer, TooLong, load_tokenizer

__all__ = [
    "Budget",
    "ChatTemplate",
    "Conversations",
    "Detokenizer",
    "Lost",
    "OutOfBudget",
    "StopSet",
    "StopStrings",
    "TemplateError",
    "TextTokenizer",
    "TooLong",
    "load_tokenizer",
]
