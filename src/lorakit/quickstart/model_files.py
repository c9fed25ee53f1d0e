"""Find the base model that ships in the package, and the short names of bases."""

from importlib.resources import files
from pathlib import Path

from lorakit.errors import MissingFileError

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def base_model_path() -> Path:
    """Return the folder of the quickstart's base model, ready for `from_pretrained`.

    Returns:
        Folder with weights, configuration, tokenizer and chat template.

    Raises:
        MissingFileError: The installation lacks files; the message names them.

    Example:
        >>> from transformers import AutoConfig
        >>> AutoConfig.from_pretrained(base_model_path()).model_type
        'llama'
    """
    folder = Path(str(files("lorakit.quickstart") / "base_model"))
    require_model_files(folder)
    return folder


def require_model_files(folder: Path) -> None:
    """Check that a folder holds every file of the base model.

    Args:
        folder: Folder to check.

    Raises:
        MissingFileError: Files are missing; the message names all of them.
    """
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f"Base model incomplete in {folder}: got no {', '.join(missing)}, expected "
            f"{len(MODEL_FILES)} files that ship with lorakit. Reinstall lorakit, or make them "
            "with tools/pretrain_quickstart_model.py."
        )


def base_name(base: str) -> str:
    """Return the value of `model`, or "quickstart" for the base that comes along."""
    return "quickstart" if base == str(base_model_path()) else base


def short_base_name(base: str) -> str:
    """Return the end of a path, or a hub id.

    >>> short_base_name("/home/me/models/llama/"), short_base_name("org/model")
    ('llama', 'org/model')
    """
    name = base_name(base)
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
