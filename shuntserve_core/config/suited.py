"""Whether the engine of a configuration runs its model: asked before anything is rented."""

from __future__ import annotations

from pathlib import Path

from shuntserve_core.config.build import plugin_from, refuse_contradiction
from shuntserve_core.config.fields import resolved
from shuntserve_core.config.loader import Config
from shuntserve_core.config.model_facts import NEEDED
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import SelectiveEngine
from shuntserve_core.quantization import read_config


def model_directory(config: Config) -> Path | None:
    """Where the model's `config.json` and tokenizer are, as far as the file says."""
    document, base = config.document, config.file.parent
    folder = document.serve.model_dir or document.model.path
    name = document.model.name
    if not folder and name and (base / name / "config.json").is_file():
        folder = name
    return resolved(base, folder) if folder else None


def refuse_unsuited(config: Config) -> None:
    """Raise `UserError` where the engine does not run the model, with its reason."""
    engine = plugin_from(config, "engine", config.document.engine)
    if isinstance(engine, SelectiveEngine):
        folder = model_directory(config)
        engine.refuse(config.model, read_config(folder) if folder else {})


def refuse_or_note(config: Config) -> str:
    """As `refuse_unsuited`, but for a study: facts given by hand, and no weights to serve; or an
    engine that is none of ours, described to the estimator alone.

    Returns the reason then, in one line; empty where the engine runs the model.
    """
    model = config.document.model
    by_hand = any(getattr(model, name) is not None for name in ("weight_dtype", *NEEDED))
    try:
        refuse_unsuited(config)
    except UserError as error:
        if by_hand and config.document.weights is None:
            return str(error)
        raise
    try:
        refuse_contradiction(config)
    except UserError as error:
        if config.engine_said:
            raise
        return str(error)
    return ""
