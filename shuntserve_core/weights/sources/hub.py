"""A checkpoint on the Hugging Face hub."""

from __future__ import annotations

from shuntserve_core.errors import UserError
from shuntserve_core.hub import Asked, HubError, fetch
from shuntserve_core.quantization import HF_QUANT_CONFIG
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.sources.safetensors import COPIED, INDEX, SafetensorsDirectory


def download(
    repository: str, revision: str | None = None, *, endpoint: str | None = None
) -> SafetensorsDirectory:
    """Fetch what a push needs into the hub's own cache, which resumes and verifies.

    Raises `UserError` for a repository that is not there, is gated, or cannot be reached:
    within seconds, in one line, and without a line of the hub's client.
    """
    patterns = ("*.safetensors", INDEX, HF_QUANT_CONFIG, *COPIED)
    try:
        directory = fetch(Asked(repository, revision, patterns, endpoint))
    except HubError as error:
        raise _refused(error, repository) from error
    # The cache keeps each revision in a directory that is named by its commit.
    return SafetensorsDirectory(directory, Source("hub", repository, directory.name))


def _refused(error: HubError, repository: str) -> UserError:
    if error.kind == "missing":
        message = "neither a directory, nor a .gguf file, nor a repository on the hub"
        return UserError(message, where=repository, remedy=error.remedy)
    return UserError(
        f"cannot be fetched from the hub: {error.message}",
        where=repository,
        remedy=f"{error.remedy}, or name a folder with the checkpoint",
    )
