"""Which chat template of a model's folder is used, and which special tokens it may name.

As in transformers: files of their own come before `tokenizer_config.json`; where there are several
by name, `tool_use` is for chats with tools and `default` for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json, read_bytes
from shuntserve_core.text.template import ChatTemplate, TemplateError

MOST_TEMPLATE_BYTES = 1 << 20
"""Of a chat template; the longest have 20 kB."""
ADDITIONAL = "additional_chat_templates"
DEFAULT, TOOLS = "default", "tool_use"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty without one.  Raises `UserError` for what is not JSON."""
    try:
        value = parse_json(read_bytes(path)) if path.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"not JSON: {error}", where=str(path), remedy="download it again"
        ) from error
    return value if isinstance(value, dict) else {}


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the tokens that the model's files name, such as `bos_token`.

    Older models name them in `special_tokens_map.json` as well; that file counts where
    `tokenizer_config.json` does not describe the added tokens.
    """
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named |= read_json(folder / "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    found = {name: value for name, value in named.items() if name.endswith("_token")}
    found |= extra if isinstance(extra, dict) else {}
    texts = {name: _token_text(value) for name, value in found.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _token_text(value: Any) -> str | None:
    """Configs write a token as its text or as a table about it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def chat_templates(
    folder: Path, config: Mapping[str, Any], tokens: Mapping[str, str], chosen: str
) -> Mapping[str, ChatTemplate]:
    """The templates by their names `default` and `tool_use`, as far as there are any.

    `chosen` is a file to use for all chats.  Raises `UserError` for what is no template.
    """
    if chosen and not Path(chosen).is_file():
        raise UserError(
            "there is no such chat template",
            where=chosen,
            remedy="name one that is there, or correct frontdoor.chat_template",
        )
    files = {DEFAULT: Path(chosen)} if chosen else _files(folder)
    if files:
        sources = {name: (_text(path), str(path)) for name, path in files.items()}
    else:
        entries = _entries(config.get("chat_template"))
        if not entries:  # processors' own file, which some models have alone
            entries = _entries(read_json(folder / "chat_template.json").get("chat_template"))
        sources = {name: (text, str(folder)) for name, text in entries.items()}
    return {name: _compiled(*sources[name], tokens) for name in (DEFAULT, TOOLS) if name in sources}


def _files(folder: Path) -> dict[str, Path]:
    found = {DEFAULT: folder / "chat_template.jinja"}
    found |= {path.stem: path for path in sorted((folder / ADDITIONAL).glob("*.jinja"))}
    return {name: path for name, path in found.items() if path.is_file()}


def _entries(value: Any) -> dict[str, str]:
    """Templates in a config: one text, a table, or a list of tables."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        tables = [entry for entry in value if isinstance(entry, dict)]
        value = {entry.get("name"): entry.get("template") for entry in tables}
    entries = value if isinstance(value, dict) else {}
    return {name: text for name, text in entries.items() if isinstance(text, str)}


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MOST_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 at byte {error.start}", where=str(path), remedy="save it as UTF-8"
        ) from error


def _compiled(source: str, where: str, tokens: Mapping[str, str]) -> ChatTemplate:
    try:
        return ChatTemplate(source, tokens)
    except TemplateError as error:
        raise UserError(
            str(error), where=where, remedy="correct the template, or give another"
        ) from error
