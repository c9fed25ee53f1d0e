"""The table of variants: a new one needs its class and a line here."""

from lorakit.layers.variants.dora import Dora
from lorakit.layers.variants.trained_parts import FrozenA, TrainedBias
from lorakit.layers.variants.variant import Variant

VARIANTS: list[type[Variant]] = [TrainedBias, Dora, FrozenA]
"""All variants, in the order in which updates register their tensors."""


def with_companions() -> list[type[Variant]]:
    """Return the variants whose tensors files hold beside the factors."""
    return [variant for variant in VARIANTS if variant.file_key]


def variant_named(name: str) -> type[Variant]:
    """Return the variant whose tensor has a name.

    Raises:
        TypeError: There is none.
    """
    for variant in VARIANTS:
        if name and variant.name == name:
            return variant
    known = ", ".join(variant.name for variant in VARIANTS if variant.name)
    raise TypeError(f"No variant has a tensor {name!r}: got that name, expected one of {known}.")
