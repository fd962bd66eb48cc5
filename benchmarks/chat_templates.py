"""Whether prompts equal those of transformers, for the chat templates of real models.

    python benchmarks/chat_templates.py FOLDER_OR_ARCHIVE...

Templates are read from folders, wheels and source archives: files that end in `.jinja`, and
`chat_template` in JSON files.  They belong to their authors and are not part of this repository;
what `docs/reference/chat-templates.md` lists came from

    pip download --no-deps llama-cpp-python==0.3.36 --no-binary llama-cpp-python
    pip download --no-deps trl==1.16.0 xinference==4.1.0

Every chat of `shuntserve_core.testing.chats` goes through the front door's reading of request
bodies with every template, and must come out as `reference` says, byte for byte, or be refused
where that says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from shuntserve_core.testing.chats import CHATS, WHY, Expected, reference
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.text import ChatTemplate, TemplateError, TextTokenizer, load_tokenizer
from shuntserve_core.text.template import AMPLE
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.prompts import Bounds
from shuntserve_plugins.frontdoors.openai.reading import read

MARK = "<!-- from here on by the script, with --page -->"
BOUNDS = Bounds("model", 1 << 20, 1, AMPLE)
SKIPPED = ("training", "-base", "_base")
"""Templates for training, which mark what is learnt, say the same as those beside them."""


@frozen
class Found:
    """A template, and where it was found."""

    name: str
    origin: str
    text: str

    @property
    def digest(self) -> str:
        """Of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


@define
class Outcome:
    """What came of all chats with one template."""

    found: Found
    counts: Counter[str] = field(factory=Counter)
    changes: set[str] = field(factory=set)
    differences: list[str] = field(factory=list)


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what may hold templates, in a folder or an archive."""
    wanted = (".jinja", ".json")
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.name.endswith(wanted):
                yield str(file.relative_to(path)), file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(wanted):
                    yield name, archive.read(name)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(wanted):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()


def templates(path: Path) -> Iterator[Found]:
    """Every template in a folder or an archive."""
    origin = path.name.removesuffix(".tar.gz").split("-py3-")[0]
    for name, content in files(path):
        stem = Path(name).stem
        if any(word in stem for word in SKIPPED):
            continue
        for text in [content.decode()] if name.endswith(".jinja") else in_json(content):
            if "messages" in text:
                yield Found(stem, origin, text)


def in_json(content: bytes) -> list[str]:
    """What a JSON file has as `chat_template`, in its object or in those that it lists."""
    try:
        value = json.loads(content)
    except ValueError:
        return []
    entries = value if isinstance(value, list) else [value]
    texts = [entry.get("chat_template") for entry in entries if isinstance(entry, dict)]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str)))


def compare(found: Found, folder: Path, hf: Any, plain: TextTokenizer) -> Outcome:
    """All chats with one template."""
    outcome = Outcome(found)
    path = folder / "template.jinja"
    path.write_text(found.text, encoding="utf-8")
    ours = load_tokenizer(folder, template=str(path))
    for name, chat in CHATS.items():
        options = {k: v for k, v in chat.items() if k not in ("messages", "chat_template_kwargs")}
        options.setdefault("add_generation_prompt", not chat.get("continue_final_message"))

        def render(messages: Any, options: Any = options, chat: Any = chat) -> str:
            text: str = hf.apply_chat_template(
                messages,
                chat_template=found.text,
                tokenize=False,
                **options,
                **chat.get("chat_template_kwargs", {}),
            )
            return text

        expected = reference(found.text, chat, render)
        try:
            body = json.dumps(chat, ensure_ascii=False).encode()
            answer = json.loads(read("tokenize", ours, BOUNDS, body).answer)
            prompt, error = plain.decode(answer["tokens"], skip_special_tokens=False), ""
        except ApiError as refused:
            prompt, error = None, refused.message
        kind = _kind(expected, prompt)
        outcome.counts[kind] += 1
        if kind == "refused":
            outcome.counts[expected.why] += 1
        if kind == "different":
            outcome.differences.append(_difference(name, expected, prompt, error))
        elif kind == "equal":
            outcome.changes |= {change.partition(":")[0] for change in expected.form.changes}
    return outcome


def _kind(expected: Expected, prompt: str | None) -> str:
    if expected.prompt != prompt:
        return "different"
    return "refused" if prompt is None else "equal"


def _difference(name: str, expected: Expected, prompt: str | None, error: str) -> str:
    wanted = (
        f"{expected.why} {expected.detail}" if expected.prompt is None else repr(expected.prompt)
    )
    forms = ", ".join(expected.form.changes)
    return f"  {name}\n    wanted ({forms}): {wanted}\n    got: {error or repr(prompt)}"


def main() -> int:
    """Compare, print a table, and say in the end how much differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--only", default="", help="templates with this in their name")
    arguments = parser.parse_args()
    transformers = __import__("transformers")
    logging.disable()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tokenizer(scratch)
        hf = transformers.AutoTokenizer.from_pretrained(str(folder))
        plain = load_tokenizer(folder)
        for found in (one for path in arguments.paths for one in templates(path)):
            if found.digest in outcomes or arguments.only not in found.name:
                continue
            try:
                ChatTemplate(found.text)
            except TemplateError as error:
                print(f"{found.name}: {error}")
                continue
            outcome = outcomes[found.digest] = compare(found, folder, hf, plain)
            counts = outcome.counts
            print(f"{found.name}: {counts['equal']} equal, {counts['refused']} refused, ", end="")
            print(f"{counts['different']} different", *outcome.differences, sep="\n", flush=True)
    total = sum((outcome.counts for outcome in outcomes.values()), Counter[str]())
    print(f"{len(outcomes)} templates, {len(CHATS)} chats: {dict(total)}")
    if arguments.page:
        write_table(arguments.page, table(list(outcomes.values()), total))
    return 1 if total["different"] else 0


def table(outcomes: list[Outcome], total: Counter[str]) -> str:
    """What was compared, and what came of it."""
    why = ", ".join(f"{total[why]} because {why}" for why in WHY)
    lines = [
        f"{len(outcomes)} templates, {len(CHATS)} chats with each. {total['equal']} prompts are",
        f"equal, {total['different']} differ, and {total['refused']} chats are refused: {why}.",
        "",
        "| template | from | SHA-256 | equal | refused | shown in another form |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.found.name.lower()):
        found, counts = outcome.found, outcome.counts
        forms = "; ".join(sorted(outcome.changes)) or "nothing"
        cells = (found.name, found.origin, f"`{found.digest}`", counts["equal"], counts["refused"])
        lines.append(f"| {' | '.join(map(str, cells))} | {forms} |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, text: str) -> None:
    """Put the table in place of the one that the page has."""
    kept, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(f"{kept}{mark}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
