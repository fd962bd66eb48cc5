from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from shuntserve_core.errors import UserError
from shuntserve_core.text import load_tokenizer

CHAT = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SHOWS_TOKENS = (
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def _named(word: str) -> str:
    return word + "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return tmp_path


def _both(model: Path, tools: Any) -> tuple[str | None, str | None]:
    """The prompt of a chat by the template that each of us chooses."""
    transformers = pytest.importorskip("transformers")
    conversations = load_tokenizer(model).conversations(with_tools=tools is not None)
    ours = conversations and conversations.prompt(CHAT, tools=tools)
    hf = transformers.AutoTokenizer.from_pretrained(str(model))
    try:
        theirs = hf.apply_chat_template(
            CHAT, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except ValueError:
        theirs = None
    return ours, theirs


LIST = [
    {"name": "default", "template": _named("listed")},
    {"name": "tool_use", "template": _named("listed tools")},
    {"name": "rag", "template": _named("listed documents")},
]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    ("config", "files", "chosen"),
    [
        (_named("config"), {}, ("config", "config")),
        (LIST, {}, ("listed", "listed tools")),
        (LIST[1:], {}, (None, "listed tools")),
        (LIST, {"chat_template.jinja": "file"}, ("file", "file")),
        (
            _named("config"),
            {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "tools"},
            ("file", "tools"),
        ),
        (_named("config"), {"additional_chat_templates/tool_use.jinja": "tools"}, (None, "tools")),
        (None, {"chat_template.jinja": "file\r\n"}, ("file\n", "file\n")),
        (None, {}, (None, None)),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    model: Path, config: Any, files: dict[str, str], chosen: Any, tools: Any
) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": config}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, word in files.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(_named(word).encode())
    ours, theirs = _both(model, tools)
    word = chosen[tools is not None]
    assert ours == theirs == (None if word is None else f"{word}Hello")


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, {}),
        ({"bos_token": {"content": "<|endoftext|>", "__type": "AddedToken"}}, {}),
        ({"bos_token": None, "pad_token": "<|im_end|>", "add_bos_token": True}, {}),
        ({"extra_special_tokens": {"image_token": "<|im_start|>"}}, {}),
        ({}, {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}),
        ({"bos_token": "<|im_end|>"}, {"bos_token": "<|im_start|>"}),
        ({"added_tokens_decoder": {}, "bos_token": "<|im_end|>"}, {"bos_token": "<|im_start|>"}),
    ],
)
def test_special_tokens_are_those_of_transformers(model: Path, config: Any, old: Any) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": SHOWS_TOKENS, **config}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    if old:
        (model / "special_tokens_map.json").write_text(json.dumps(old))
    ours, theirs = _both(model, None)
    assert ours == theirs
    assert ours is not None
    assert ours.endswith("Hello")


def test_a_processor_s_template_is_better_than_none(model: Path) -> None:
    (model / "chat_template.json").write_text(json.dumps({"chat_template": _named("processor")}))
    template = load_tokenizer(model).template
    assert template is not None
    assert template.render(CHAT) == "processorHello"


def test_a_file_that_is_named_serves_chats_with_tools_too(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": LIST}))
    (model / "own.jinja").write_text(_named("own"))
    tokenizer = load_tokenizer(model, template=str(model / "own.jinja"))
    for with_tools in (False, True):
        conversations = tokenizer.conversations(with_tools=with_tools)
        assert conversations is not None
        assert conversations.prompt(CHAT) == "ownHello"


def test_a_broken_additional_template_is_named(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match=r"tool_use\.jinja"):
        load_tokenizer(model)


def test_there_is_one_token_at_the_beginning(model: Path) -> None:
    """Tokenizers that put one before every text do not do so before a template's."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save(str(model / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos[0]}
    config["chat_template"] = "{{ bos_token }}" + _named("")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(model)
    hf = transformers.AutoTokenizer.from_pretrained(str(model))
    conversations = ours.conversations(with_tools=False)
    assert conversations is not None
    ids = ours.encode(conversations.prompt(CHAT), add_special_tokens=False)
    assert ids == hf.apply_chat_template(CHAT, return_dict=False)
    assert ids.count(bos[1]) == 1
    assert ours.encode("Hello")[0] == bos[1]
