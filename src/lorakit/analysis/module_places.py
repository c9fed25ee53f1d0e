"""The place of a module in a model: its kind and its layer."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Place of a module.

    Attributes:
        kind: Name of the modules at the same place in every layer, such as "q_proj".
        layer: Index of the layer, from 0; None for a module outside of the layers.
    """

    kind: str
    layer: int | None


def module_places(paths: Sequence[str]) -> dict[str, Place]:
    """Return the kind and layer of every module, with the shortest names that distinguish kinds.

    The first part of a path that is a number is its layer. If an encoder and a decoder have the
    same modules, their kinds begin with the part that differs.

    >>> module_places(["model.layers.0.attn.q_proj", "model.layers.1.attn.q_proj", "lm_head"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'model.layers.0.attn.q_proj': Place(kind='q_proj', layer=0),
     'model.layers.1.attn.q_proj': Place(kind='q_proj', layer=1),
     'lm_head': Place(kind='lm_head', layer=None)}
    """
    split = {path: _split(path) for path in paths}
    groups = list(dict.fromkeys((stem, inner) for stem, _, inner in split.values()))
    names = {group: _kind(group, groups) for group in groups}
    return {path: Place(names[stem, inner], layer) for path, (stem, layer, inner) in split.items()}


def _split(path: str) -> tuple[str, int | None, str]:
    """Return the path of the layers, the index of the layer, and the path inside the layer."""
    parts = path.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at == len(parts) - 1:
        return "", None, path
    return ".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :])


def _kind(group: tuple[str, str], groups: Sequence[tuple[str, str]]) -> str:
    stem, inner = group
    name = _shortest_tail(inner, [other for _, other in groups if other != inner])
    stems = [other for other, other_inner in groups if other_inner == inner and other != stem]
    return f"{_first_difference(stem, stems)} {name}" if stems else name


def _shortest_tail(path: str, others: Sequence[str]) -> str:
    """Return the shortest ending of a path that no other path has."""
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if all(other.split(".")[-count:] != tail for other in others):
            return ".".join(tail)
    return path


def _first_difference(stem: str, others: Sequence[str]) -> str:
    """Return the first part of a stem that differs from all others, or the whole stem."""
    for index, part in enumerate(stem.split(".")):
        if all(other.split(".")[index : index + 1] != [part] for other in others):
            return part
    return stem
