"""Refuse paths that cannot be models, without importing transformers."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from lorakit.errors import ConfigError, MissingFileError


def check_local_path(name: str, key: str, root: Path = Path()) -> None:
    """Refuse a local path that cannot be a model, before asking the hub for it.

    Args:
        name: Hub id or local directory.
        key: The recipe key or file that has the name, for errors.
        root: Directory to which the path is relative.

    Raises:
        MissingFileError: It is not a directory, or not that of a model.
        ConfigError: It is the directory of an adapter.
    """
    given = Path(name).expanduser()
    path = root / given
    if not os.path.isdir(path):  # False for a name that is too long
        if os.path.isfile(path):
            raise MissingFileError(
                f"No model in {key}: got the file '{name}', expected a directory with config.json "
                f"and weights, or a hub id. Name its folder, '{path.parent}'."
            )
        if name.startswith((".", "~", os.sep)) or len(given.parts) > 2:
            raise MissingFileError(
                f"No model in {key}: got '{name}', which does not exist.{_similar_names(path)} "
                "Check the path; it is relative to the current directory."
            )
        # Here, as the studio imports it for nothing else.
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(name)
        except HFValidationError:
            raise MissingFileError(
                f"No model in {key}: got '{name}', which is neither a directory nor a hub id, "
                "expected one such as owner/name. Check the name."
            ) from None
        return
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"No base model in {key}: got '{name}', which is an adapter. Name the base it was made "
            "for (base_model_name_or_path in its adapter_config.json), or merge the two first: "
            f"lorakit merge {name}."
        )
    raise MissingFileError(
        f"No model in {key}: got '{name}', a directory without config.json. Name a directory that "
        "save_pretrained wrote, or a hub id."
    )


def _similar_names(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder '{path.parent}' either."
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    near = get_close_matches(path.name, names, n=3, cutoff=0.4)
    return f" Near it: {', '.join(near)}." if near else ""
