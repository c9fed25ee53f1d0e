"""The digest of a base model's weights, by which an adapter knows its base."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from lorakit.files.content_digests import weights_digest

_FILES = ("model.safetensors", "model.safetensors.index.json")


def base_digest(name: str, revision: str | None = None) -> str | None:
    """Return the digest of a base model's weights, see `weights_digest`.

    Args:
        name: Hub id or local directory.
        revision: Branch, tag or commit of a hub model.

    Returns: None if its safetensors files are not on this machine; nothing is downloaded.
    """
    local = Path(name).expanduser()
    folder = local if local.is_dir() else _cache_file(name, revision)
    if folder is None:
        return None
    try:
        return weights_digest(sorted(folder.glob("model*.safetensors")))
    except (ValueError, OSError):  # loading the base reports a damaged file
        return None


def are_different(recorded: str | None, digest: str | None) -> bool:
    """Return whether two digests of a base are known and different.

    >>> are_different("a", "b"), are_different("a", "a"), are_different(None, "b")
    (True, False, False)
    """
    return None not in (recorded, digest) and recorded != digest


def _cache_file(name: str, revision: str | None) -> Path | None:
    for file in _FILES:
        try:
            found = try_to_load_from_cache(name, file, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
