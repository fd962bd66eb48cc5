from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.text import ChatTemplate, TemplateError, load_tokenizer
from shuntserve_core.text.template import Budget, OutOfBudget

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Straße & <b>?  "},
    {"role": "assistant", "content": "Yes. "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
LOOPS = """{{ bos_token }}{%- for m in messages %}
    {%- if loop.index0 == 1 %}{% continue %}{% endif %}
    <{{ m.role }}>{{ m['content'] | trim }}{% generation %}!{% endgeneration %}
{% endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}{{ strftime_now('%Y') }}>{% endif %}"""
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("source", [None, LOOPS, PLAIN])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(
    hf: Any, folder: Path, source: str | None, tools: Any, prompt: bool
) -> None:
    ours = load_tokenizer(folder).template
    assert ours is not None
    if source is not None:
        ours = ChatTemplate(source, {"bos_token": hf.bos_token, "eos_token": hf.eos_token})
    theirs = hf.apply_chat_template(
        MESSAGES,
        tools=tools,
        chat_template=source,
        tokenize=False,
        add_generation_prompt=prompt,
    )
    assert ours.render(MESSAGES, tools=tools, add_generation_prompt=prompt) == theirs


def test_continues_the_last_message_as_transformers_does(hf: Any, folder: Path) -> None:
    ours = load_tokenizer(folder).template
    assert ours is not None
    theirs = hf.apply_chat_template(MESSAGES, tokenize=False, continue_final_message=True)
    text = ours.render(MESSAGES, add_generation_prompt=False, continue_final_message=True)
    assert text == theirs
    assert text.endswith("Yes. ")
    assert MESSAGES[-1]["content"] == "Yes. "


@pytest.mark.parametrize("text", ["It is ", "  It is", "It", "</think>It is ", "<think>x</think>y"])
@pytest.mark.parametrize(
    "shown",
    ["m.content", "m.content | trim", "m.content | upper", "m.content.split('</think>')[-1]"],
)
def test_what_is_continued_is_cut_as_transformers_cuts_it(hf: Any, text: str, shown: str) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ " + shown + " }}</>\n{% endfor %}"
    messages = [MESSAGES[1], {"role": "assistant", "content": text}]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    try:
        theirs = hf.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    except ValueError:
        with pytest.raises(TemplateError, match="the end of the last message"):
            ChatTemplate(source).render(messages, **options)
    else:
        assert ChatTemplate(source).render(messages, **options) == theirs


def test_the_last_text_of_parts_is_continued(hf: Any) -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two "}]
    messages = [{"role": "assistant", "content": parts}]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    theirs = hf.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert ChatTemplate(source).render(messages, **options) == theirs == "One.|Two "
    assert parts[-1]["text"] == "Two "


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('only user messages') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.foo.bar }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)


def test_a_broken_template_is_named(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for %}")
    with pytest.raises(UserError, match=r"broken\.jinja"):
        load_tokenizer(folder, template=str(broken))
    with pytest.raises(UserError, match="no such chat template"):
        load_tokenizer(folder, template=str(tmp_path / "missing"))


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_reads_end_tokens_and_defaults_from_every_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2], "top_p": 0.9}')
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.stop_ids == (0, 2)
    assert tokenizer.defaults == {"top_p": 0.9}
    assert tokenizer.template is not None
    assert tokenizer.template.source == PLAIN


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
            "many steps",
        ),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "many steps"),
        ("{% for i in range(99) %}{{ messages[0].content }}{% endfor %}", "more than"),
        (
            "{% set n = namespace(x='x') %}"
            "{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "more than",
        ),
        (
            "{% set n = namespace(x='x') %}"
            "{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "more than",
        ),
        ("{% set x = 99999999 * 'x' %}", "more than"),
        ("{% set x = messages * 99999999 %}", "more than"),
    ],
)
def test_no_template_takes_more_than_it_is_given(source: str, words: str) -> None:
    budget = Budget(steps=100, characters=10_000)
    with pytest.raises(OutOfBudget, match=words):
        ChatTemplate(source).render([{"role": "user", "content": "x" * 200}], budget=budget)
    assert budget.steps == 100


def test_a_power_is_no_way_around() -> None:
    with pytest.raises(TemplateError, match="power"):
        ChatTemplate("{{ 9 ** 9 ** 9 }}").render(MESSAGES)


def test_what_fits_is_rendered_as_ever() -> None:
    source = (
        "{% macro f(x) %}<{{ x ~ '-' ~ undefined }}>{% endmacro %}"
        "{% for m in messages %}{{ f(m.role) + '!' * 2 }}{% endfor %}"
        "{{ 2 * 3 + 1 }}{{ [1] + [2] }}"
    )
    budget = Budget(steps=20, characters=2000)
    text = ChatTemplate(source).render(MESSAGES, budget=budget)
    assert text == "<system->!!<user->!!<assistant->!!7[1, 2]"
