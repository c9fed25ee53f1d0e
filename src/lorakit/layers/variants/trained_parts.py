"""Variants that train more or less of an adapted layer: its bias, or all but lora_A."""

from typing import Any

from torch import Tensor

from lorakit.layers.variants.variant import LayerKind, Variant


class TrainedBias(Variant):
    """A trained bias, (out,), that acts instead of the base's.

    The configuration's `bias` selects modules with a bias, adapted or not, so the plan says which
    layers have this variant.
    """

    method = "trained bias"
    name = "bias"
    is_of_base = True

    @classmethod
    def initial(cls, layer: Any, update: Any) -> Tensor:
        """Return the base's bias."""
        return layer.bias.detach()

    @classmethod
    def bias(
        cls, bias: Tensor | None, base_bias: Tensor | None, tensor: Tensor | None
    ) -> Tensor | None:
        """Return the trained bias, unless another update has brought one."""
        return tensor if bias is base_bias else bias


class FrozenA(Variant):
    """LoRA-FA: lora_A keeps its first values, so it needs no gradient and no saved input.

    Source: Zhang et al. 2023, arXiv:2308.03303.
    """

    method = "LoRA-FA"
    setting = "freeze_lora_a"
    is_recorded = False
    is_all_in_factors = True
    frozen = frozenset({"lora_A"})

    @classmethod
    def obstacle(cls, kind: type[LayerKind]) -> str | None:
        """Return a reason for layers whose lora_A is zero at first."""
        return "has a lora_A that is zero at first" if kind.zero_factor == "A" else None
