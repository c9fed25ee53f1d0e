"""Explain to the user why a base model or a tokenizer cannot be loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorakit.errors import ConfigError, MissingFileError, did_you_mean
from lorakit.files.json_files import is_pointer
from lorakit.libraries.hub import fetch_failure_reason

DAMAGED_FILE_ERRORS = (SafetensorError, UnpicklingError, EOFError)
"""Errors that truncated or damaged weight files raise."""


def loading_error(
    name: str, key: str, what: str, error: Exception, auto_class: Any = None
) -> ConfigError | MissingFileError:
    """Return the error to raise where transformers could not load something."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = (lines[0] if lines else type(error).__name__).rstrip(".")
    if isinstance(error, UnpicklingError):  # torch's text advises to run the file as a program
        reason = "a .bin file is not a pickle of tensors"
    if "Unrecognized configuration class" in str(error):
        values, _ = PreTrainedConfig.get_config_dict(name)
        kind = values.get("model_type")
        return ConfigError(
            f"The model in {key} cannot do this task: got '{name}' of type '{kind}', expected one "
            f"that {auto_class.__name__} knows. Choose another model, or another task."
        )
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"The {what} in {key} comes with custom code: got '{name}', expected permission to run "
            "it. Read that code; if you trust it, set trust_remote_code=true in the recipe, or add "
            "--trust-remote-code to a command without one."
        )
    pointers = _lfs_pointers(Path(name).expanduser(), what)
    if pointers:
        those = pointers[0] + (f" and {len(pointers) - 1} more" if len(pointers) > 1 else "")
        is_what = "are git-lfs pointers" if len(pointers) > 1 else "is a git-lfs pointer"
        return MissingFileError(
            f"Could not load the {what} in {key}: got '{name}', whose {those} {is_what}, expected "
            "the contents. Run `git lfs pull` in that folder."
        )
    if isinstance(error, (*DAMAGED_FILE_ERRORS, RuntimeError)):
        return ConfigError(
            f"Could not load the {what} in {key}: got '{name}', whose files are damaged or do not "
            f"belong together ({reason}). Download or save the model again."
        )
    if Path(name).expanduser().is_dir():
        return MissingFileError(
            f"Could not load the {what} in {key} from the directory '{name}' ({reason}). Name a "
            "directory that holds the files that save_pretrained of model and tokenizer wrote."
        )
    return MissingFileError(
        f"Could not load the {what} in {key}: got '{name}', which is not a directory, and asking "
        f"the Hugging Face hub for it failed ({fetch_failure_reason(error)})."
        f"{_similar_directory(Path(name).expanduser())} Check the name and the network, or name a "
        "local directory."
    )


def _similar_directory(path: Path) -> str:
    """Return a question about the nearest directory, or an empty string."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return did_you_mean(path.name, [entry.name for entry in beside if entry.is_dir()])


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str, key: str) -> None:
    """Refuse a tokenizer that knows no text: transformers makes an empty one without files.

    Raises:
        MissingFileError: Its vocabulary has special tokens only.
    """
    wordless = {*tokenizer.all_special_tokens, "▁"}  # the second is a space for SentencePiece
    if all(token in wordless for token in tokenizer.get_vocab()):
        raise MissingFileError(
            f"No vocabulary of the tokenizer in {key}: got '{name}' without its files, expected "
            "those that save_pretrained of the tokenizer wrote, such as tokenizer.json. Copy them "
            "from the model that this one was made from."
        )


def _lfs_pointers(folder: Path, what: str) -> list[str]:
    """Return the names of files of a model or tokenizer that are only Git LFS pointers."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    weights = weights or [path for path in files if path.suffix == ".bin"]
    others = [path for path in files if path.suffix in (".json", ".model", ".txt", ".jinja")]
    read = [folder / "config.json", *weights] if what == "model" else others
    return [path.name for path in read if os.access(path, os.R_OK) and is_pointer(path)]


def check_missing(
    model: PreTrainedModel, missing: Sequence[str], name: str, key: str, has_head: bool
) -> None:
    """Refuse a checkpoint that lacks more than a head: the body would be random."""
    prefix = f"{model.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix) and "pooler" not in key]
    lacking = body if has_head else list(missing)
    if lacking:
        listed = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        raise ConfigError(
            f"The checkpoint '{name}' in {key} lacks {len(lacking)} weights that "
            f"{type(model).__name__} needs ({listed}); they would be random. Choose a model that "
            "was trained for this task type, or another task."
        )
