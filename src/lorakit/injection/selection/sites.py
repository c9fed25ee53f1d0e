"""A layer to adapt, and an adapter's tensors as injection reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.layers import AdaptedLayer, KernelShape


class AdapterTensors(Protocol):
    """An adapter as a value: what `add_adapter` needs of `lorakit.Adapter`."""

    def in_names_of(self, model: nn.Module) -> AdapterTensors:
        """Return it with the names that a model's modules and parameters have."""
        ...

    @property
    def config(self) -> LoraConfig:
        """The configuration."""
        ...

    @property
    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(lora_A, lora_B) by module path."""
        ...

    @property
    def companions(self) -> Mapping[str, Tensor]:
        """Tensors of variants by module path and name."""
        ...

    @property
    def replaced(self) -> Mapping[str, Tensor]:
        """Tensors that replace the base's, by their full name in the base."""
        ...

    @property
    def convolutions(self) -> Mapping[str, KernelShape]:
        """Channels, kernel and groups of adapted convolutions by module path."""
        ...

    @property
    def trained_tokens(self) -> Mapping[str, Tensor]:
        """Trained rows of embeddings and output layers, by module path."""
        ...

    @property
    def base_weights(self) -> Mapping[str, Tensor]:
        """Weights of the base that the adapter's file repeats, by module path."""
        ...


@dataclass(frozen=True)
class Site:
    """A layer to adapt."""

    path: str
    module: nn.Module
    adapted_class: type[AdaptedLayer]
    r: int
    scaling: float
    slices: tuple[bool, ...] | None = None
    """Which slices of a fused matrix are adapted, each separately; None for the whole."""
