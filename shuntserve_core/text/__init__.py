"""Text to token ids and back: tokenizers, chat templates, detokenization, stop strings.

tokenizer.py     a model's tokenizer and what its config files say about it
detokenize.py    token ids to text, a few at a time
stop.py          stop strings, which may straddle tokens
template.py      chat messages to a prompt, sandboxed
"""

from shuntserve_core.text.detokenize import Detokenizer
from shuntserve_core.text.stop import StopStrings
from shuntserve_core.text.template import ChatTemplate, TemplateError
from shuntserve_core.text.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "TemplateError",
    "TextTokenizer",
    "load_tokenizer",
]
