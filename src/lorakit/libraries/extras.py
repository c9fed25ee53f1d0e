"""Packages that only some runs need, and the extra of lorakit that installs each."""

from importlib.util import find_spec

from lorakit.errors import ConfigError

EXTRA_OF = {
    "bitsandbytes": "quantization",
    "fastapi": "serve",
    "gguf": "gguf",
    "llguidance": "serve",
    "nicegui": "studio",
    "optuna": "tune",
    "prometheus_client": "serve",
    "ray": "tune",
    "rouge_score": "metrics",
    "seqeval": "metrics",
    "uvicorn": "serve",
}
"""The extra by the module that it installs."""


def install_hint(module: str, extra: str | None = None) -> str:
    """Return the sentence that says how to install a package.

    Args:
        module: Its module.
        extra: The extra that installs it; None takes the one of the table.

    >>> install_hint("seqeval")
    "Install it: pip install 'lorakit[metrics]'."
    """
    return f"Install it: pip install 'lorakit[{extra or EXTRA_OF[module]}]'."


def require_package(module: str, needed_by: str, extra: str | None = None) -> None:
    """Look for a package that an extra installs, without importing it.

    Args:
        module: Its module.
        needed_by: What needs it, as the subject of a sentence.
        extra: The extra that installs it; None takes the one of the table.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"{needed_by} needs the package {module}, which is not installed. "
            f"{install_hint(module, extra)}"
        )
