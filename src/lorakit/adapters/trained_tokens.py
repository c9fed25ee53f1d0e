"""Checks of an adapter's trained tokens, without a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError
from lorakit.injection.selection.sites import AdapterTensors
from lorakit.injection.selection.targets import token_indices_of


def check_trained_tokens(config: LoraConfig, rows: Mapping[str, Tensor], where: str) -> None:
    """Compare the trained tokens of a file with its configuration.

    Args:
        config: The file's configuration.
        rows: Embeddings of the trained tokens by module path.
        where: Name of the file for error messages.

    Raises:
        AdapterFileError: They contradict each other.
    """
    problems: list[str] = []
    if config.trainable_token_indices is None and rows:
        problems.append(f"it has trained rows of {next(iter(rows))}, but no indices of them")
    elif config.trainable_token_indices is not None and not rows:
        problems.append("it has indices of trained tokens, but no rows")
    for path, tensor in rows.items():
        indices = token_indices_of(config, path)
        if tensor.ndim != 2:
            problems.append(f"the rows of {path} have shape {tuple(tensor.shape)}, not a matrix")
        elif indices is not None and len(indices) != len(tensor):
            problems.append(f"{path} has {len(tensor)} rows for {len(indices)} indices")
    if problems:
        raise AdapterFileError(
            f"trainable_token_indices in {where}: {problems[0]}. The two files do not belong "
            "together; save the adapter again."
        )


def differing_tokens(place: AdapterTensors, new: AdapterTensors, name: str) -> list[str]:
    """Return a problem for each module whose trained tokens differ between two adapters."""
    problems = [
        f"it trains tokens of {path}, which {name!r} does not"
        for path in new.trained_tokens
        if path not in place.trained_tokens
    ]
    for path, rows in place.trained_tokens.items():
        if path not in new.trained_tokens:
            problems.append(f"it lacks the tokens of {path}")
            continue
        same = token_indices_of(place.config, path) == token_indices_of(new.config, path)
        if not same or rows.shape != new.trained_tokens[path].shape:
            problems.append(f"it trains other tokens of {path}, or in another order")
    return problems
