"""The Hugging Face hub: what is an id of it, and fetching files."""

import re
from collections.abc import Sequence
from pathlib import Path

from lorakit.errors import MissingFileError


def is_hub_id(path: str | Path) -> bool:
    """Return whether a path can only be a hub id: "owner/name" where no folder "owner" lies."""
    is_local = Path(path).exists() or Path(path).parent.is_dir()
    return not is_local and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) is not None


def fetch_from_hub(repository: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Return the local directory that files of a repository were fetched to.

    Args:
        repository: Hub id.
        files: Names of the files, or patterns; those that are not there are left out.
        revision: Branch, tag or commit; None takes the newest of the main branch.

    Raises:
        MissingFileError: The hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # network, hub and cache errors share no class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise MissingFileError(
            f"No adapter at '{repository}': it is no directory here, and asking the Hugging Face "
            f"hub for it failed ({reason}). Check the name and the network, or name a local "
            "directory."
        ) from error
