"""A checkpoint on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from shuntserve_core.errors import UserError
from shuntserve_core.hub import out_of_reach, quietly
from shuntserve_core.quantization import HF_QUANT_CONFIG
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.sources.safetensors import COPIED, INDEX, SafetensorsDirectory


def download(
    repository: str, revision: str | None = None, *, endpoint: str | None = None
) -> SafetensorsDirectory:
    """Fetch what a push needs into the hub's own cache, which resumes and verifies.

    Raises `UserError` for a repository that is not there, is gated, or cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        raise UserError(
            "reading from the Hugging Face hub needs the package huggingface_hub",
            where=repository,
            remedy="pip install 'shuntserve[hub]'",
        ) from error
    why = out_of_reach(endpoint)
    try:
        with quietly():
            directory = snapshot_download(
                repository,
                revision=revision,
                endpoint=endpoint,
                allow_patterns=["*.safetensors", INDEX, HF_QUANT_CONFIG, *COPIED],
                local_files_only=bool(why),
            )
    except GatedRepoError as error:
        raise UserError(
            "the repository is gated", where=repository, remedy="ask for access, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "neither a directory, nor a .gguf file, nor a repository on the hub",
            where=repository,
            remedy="correct the name, or set HF_TOKEN if it is private",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = why or str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot be fetched from the hub: {reason}",
            where=repository,
            remedy="name a folder with the checkpoint, or try again where the hub is in reach",
        ) from error
    # The cache keeps each revision in a directory that is named by its commit.
    commit = Path(directory).name
    return SafetensorsDirectory(Path(directory), Source("hub", repository, commit))
