"""Layers that "all-linear" leaves out, or adapts with a lower rank.

A layer that is named gives an error if a setting does not fit it. "all-linear" names none, so it
selects the layers that fit, and the injection lists the others.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from lorakit.config import LoraConfig, matching_pattern
from lorakit.injection.selection.adapted_classes import adapted_class_of
from lorakit.injection.selection.variants import obstacle_of_kind
from lorakit.layers.kinds.experts import expert_parameters, is_known_experts


def left_out_of_all_linear(
    config: LoraConfig, free: Mapping[str, nn.Module], bypassed: Mapping[str, str]
) -> dict[str, str]:
    """Return why linear layers are left out, by path."""
    left_out = {}
    for path, module in free.items():
        kind = adapted_class_of(module)
        if kind is None or not kind.is_linear:
            continue
        if path in bypassed:
            left_out[path] = bypassed[path]
        elif (found := obstacle_of_kind(config, kind)) is not None:
            left_out[path] = f"{kind.plain_class.__name__} {found[1]} ({found[0]})"
    return left_out


def with_lower_ranks(
    config: LoraConfig, selected: Mapping[str, nn.Module]
) -> tuple[LoraConfig, list[tuple[str, int]]]:
    """Return settings in which no selected layer has a larger rank than it allows.

    A gate with one output allows rank 1. Its scaling equals that of the others. If every layer is
    too small, the rank is wrong, and the settings stay as they are.

    Returns: The settings, and the layers with their lower rank, by path.
    """
    lowered = []
    for path, module in selected.items():
        kind = adapted_class_of(module)
        is_told = matching_pattern(config.rank_pattern, path) or config.slices_for(path)
        if kind is None or is_told:
            continue
        largest = min(kind.factor_sizes(module))
        if config.rank_for(path) > largest:
            lowered.append((path, largest))
    if not lowered or len(lowered) == len(selected):
        return config, []
    scaled = {p: config.alpha_for_scaling(config.scaling_for(p), rank) for p, rank in lowered}
    return config.with_values(dict(lowered), scaled), lowered


def untargeted_experts(
    free: Mapping[str, nn.Module], targeted: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Yield the stacked weights of experts that are not layers, and how to adapt them."""
    stacked = {
        f"{path}.{name}": f"{path.rpartition('.')[2]}.{name}"
        for path, module in free.items()
        if is_known_experts(module)
        for name in expert_parameters(module)
    }
    left = {path: name for path, name in stacked.items() if path not in targeted}
    names = list(dict.fromkeys(left.values()))
    for path in left:
        yield path, f"experts held as 3-D parameters, which target_parameters={names} adapts"
