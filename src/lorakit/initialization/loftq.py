"""LoftQ: factors that make up for quantization."""

from collections.abc import Sequence

from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.errors import QuantizationError, first_few
from lorakit.initialization.pissa import principal_factors
from lorakit.initialization.protocol import (
    FreshUpdate,
    Initialization,
    TargetLayer,
)
from lorakit.layers.bitsandbytes_storage import bits_of


class Loftq(Initialization):
    """The value "loftq": the best rank-r approximation of what quantization has changed.

    Source: Li et al. 2023, arXiv:2310.08659, with one step of its algorithm 1.
    """

    source = "quantization_error"

    def check(self, layers: Sequence[TargetLayer], config: LoraConfig) -> None:
        """Refuse layers that have no quantization error.

        Raises:
            TargetError: One is not a linear layer.
            QuantizationError: One is not quantized.
        """
        super().check(layers, config)
        dense = [layer.path for layer in layers if bits_of(layer.module) is None]
        if dense:
            raise QuantizationError(
                f"Cannot initialize {first_few(dense, 1)} with init_lora_weights='loftq': its "
                "weight is not quantized, expected a quantized one. Load the base with "
                "quantization, or use another init_lora_weights."
            )

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return the principal factors of the quantization error."""
        return principal_factors(fresh.matrix(), fresh.update.r, fresh.update.scaling)
