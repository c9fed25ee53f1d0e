"""What bases are called on the pages."""

from __future__ import annotations

from lorakit.quickstart.model_files import base_model_path


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
