"""The protocol of an initialization: what it needs, what it refuses, and its factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.errors import TargetError, first_few
from lorakit.layers import AdaptedLayer, LoraConv1D, LowRankUpdate, OffsetUpdate
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.layers.kinds.read_weight import LoraReadWeight

Source = Literal["weight", "quantization_error", "inputs", "gradient"]
"""What the factors of a layer are computed from:

- "weight": its weight W0, dequantized, (out, in).
- "quantization_error": its weight before quantization minus W0, (out, in).
- "inputs": the principal components of its input on training data, (k, in).
- "gradient": the mean gradient of the loss with respect to its weight on training data, (out, in).
"""


class TargetLayer(Protocol):
    """What an initialization reads of a layer before the model is changed."""

    @property
    def path(self) -> str:
        """Path in the model."""
        ...

    @property
    def module(self) -> nn.Module:
        """The layer."""
        ...

    @property
    def adapted_class(self) -> type[AdaptedLayer]:
        """The class that the layer becomes."""
        ...

    @property
    def r(self) -> int:
        """Rank of the update."""
        ...


def _no_matrix() -> Tensor:
    raise TypeError("Random factors are computed from no matrix.")


@dataclass(frozen=True)
class FreshUpdate:
    """An update to initialize, and what its factors are computed from.

    Attributes:
        update: The update; the values of its factors are not read.
        zero_factor: The factor that is zero at first, so that the update is.
        matrix: Reads the matrix that the initialization's `source` names.
    """

    update: LowRankUpdate
    zero_factor: Literal["A", "B"]
    matrix: Callable[[], Tensor] = _no_matrix


class Initialization(ABC):
    """One value of `init_lora_weights`. Derive from it to add another.

    Attributes:
        source: What the factors are computed from; None for random numbers alone.
        has_offset: Whether the update is s (B A - B0 A0), with A0 and B0 the first
            factors (`OffsetUpdate`).
        changes_base_in_peft: Whether PEFT subtracts s B0 A0 from the base, with A0 and B0 computed
            from the base's weight. The factors in such a file are A and B, without A0 and B0.
        redistributes_ranks: Whether layers get other ranks once training data is seen.
        fits_slices: Whether slices of a fused matrix can be initialized one by one.
    """

    source: ClassVar[Source | None] = None
    has_offset: ClassVar[bool] = False
    changes_base_in_peft: ClassVar[bool] = False
    redistributes_ranks: ClassVar[bool] = False
    fits_slices: ClassVar[bool] = False

    @property
    def needs_data(self) -> bool:
        """Whether training data is needed; until then factors are those of `True`."""
        return self.source in ("inputs", "gradient")

    def check(self, layers: Sequence[TargetLayer], config: LoraConfig) -> None:
        """Refuse layers that cannot be initialized this way.

        What is computed needs layers whose weight is one matrix. Extend it for what else there is.

        Args:
            layers: All layers that the adapter will adapt.
            config: The adapter's configuration.

        Raises:
            TargetError: Names the first layer that is not linear. Each initialization documents
                its other errors.
        """
        others = [layer.path for layer in layers if not is_linear(layer.adapted_class)]
        if others and self.source is not None:
            raise TargetError(
                f"Cannot initialize {first_few(others, 1)} with init_lora_weights="
                f"{config.init_lora_weights!r}: it is not a linear layer, expected linear layers "
                "only. Leave it out of target_modules, or give it a separate adapter."
            )

    def file_problems(self, layers: Sequence[TargetLayer], config: LoraConfig) -> list[str]:
        """Return why the factors of a PEFT file cannot be put on these layers, in clauses."""
        return []

    @abstractmethod
    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return A and B for an update, of the shapes that its factors have."""

    def update_class(
        self, adapted_class: type[AdaptedLayer], *, is_fresh: bool
    ) -> type[LowRankUpdate]:
        """Return the class of a layer's update.

        Args:
            adapted_class: The layer's class.
            is_fresh: Whether the update has no factors yet. Those of a file are measured from
                others only where PEFT changes the base.
        """
        has_offset = self.has_offset and (is_fresh or self.changes_base_in_peft)
        return OffsetUpdate if has_offset and is_linear(adapted_class) else LowRankUpdate

    def write_(self, update: LowRankUpdate, A: Tensor, B: Tensor) -> None:
        """Copy factors that this initialization computed into their update."""
        if not self.has_offset:
            update.set_factors_(A, B)
        elif isinstance(update, OffsetUpdate):
            update.initialize_at_(A, B)
        else:
            raise TypeError(f"{type(update).__name__} is not measured from its first factors.")


class FromWeight(Initialization):
    """Computes the factors from the base's weight, which PEFT then subtracts from it.

    The update is measured from its first factors.
    """

    source = "weight"
    has_offset = True
    changes_base_in_peft = True

    def file_problems(self, layers: Sequence[TargetLayer], config: LoraConfig) -> list[str]:
        """Return why the factors of a PEFT file cannot be put on these layers."""
        quantized = [layer.path for layer in layers if bits_of(layer.module) is not None]
        read = [layer.path for layer in layers if issubclass(layer.adapted_class, LoraReadWeight)]
        if read:
            return [
                f"it has init_lora_weights={config.init_lora_weights!r} on the weight of {read[0]} "
                "(target_parameters), from which PEFT subtracts the first factors. Convert it with "
                "PEFT's path_initial_model_for_weight_conversion."
            ]
        if not quantized:
            return []
        return [
            f"it has init_lora_weights={config.init_lora_weights!r}, and PEFT quantizes what it "
            f"leaves of {quantized[0]} again, so its base cannot be computed from a quantized one. "
            "Put it on the 16-bit base and save it from there."
        ]


def is_linear(adapted_class: type[AdaptedLayer]) -> bool:
    """Return whether layers of this kind multiply by one matrix (out, in)."""
    return issubclass(adapted_class, (AdaptedLinear, LoraConv1D))
