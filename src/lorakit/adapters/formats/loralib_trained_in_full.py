"""What a loralib state dict holds besides factors: trained biases and heads."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor


class TrainedInFull(NamedTuple):
    """Tensors trained in full, and the settings that select them.

    Attributes:
        tensors: Biases and heads by their full name in the base.
        bias: Value of `LoraConfig.bias`.
        modules: Paths of the heads, for `modules_to_save`.
    """

    tensors: dict[str, Tensor]
    bias: Literal["none", "all", "lora_only"]
    modules: tuple[str, ...]


def trained_in_full(
    tensors: Mapping[str, Tensor], adapted: Iterable[str], factors: tuple[str, ...]
) -> TrainedInFull:
    """Return what a state dict holds besides factors, unless it holds the base's weights as well.

    Args:
        tensors: The state dict.
        adapted: Paths of the adapted layers; a `ConvLoRA` has its weight and bias below `conv`.
        factors: Ends of the keys of factors.
    """
    adapted = list(adapted)
    if any(f"{path}{inner}.weight" in tensors for path in adapted for inner in ("", ".conv")):
        return TrainedInFull({}, "none", ())
    stored = {f"{path}.conv.bias": f"{path}.bias" for path in adapted}
    names = {key: stored.get(key, key) for key in tensors if not key.endswith(factors)}
    owners = {name: name.rpartition(".")[0] for name in names.values()}
    heads = {owner for name, owner in owners.items() if not name.endswith(".bias")}
    of_biases = {owner for owner in owners.values() if owner not in heads}
    return TrainedInFull(
        {name: tensors[key] for key, name in names.items()},
        "all" if of_biases - set(adapted) else "lora_only" if of_biases else "none",
        tuple(sorted(heads)),
    )
