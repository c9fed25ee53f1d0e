"""Initializations computed from the base's weight, which PEFT then subtracts from it."""

from collections.abc import Sequence

from lorakit.config import LoraConfig
from lorakit.initialization.protocol import Initialization, TargetLayer
from lorakit.layers.bitsandbytes_storage import bits_of


class FromWeight(Initialization):
    """Computes the factors from the weight of the layer; the update is measured from them."""

    source = "weight"
    has_offset = True
    changes_base_in_peft = True

    def file_problems(self, layers: Sequence[TargetLayer], config: LoraConfig) -> list[str]:
        """Return why the factors of a PEFT file cannot be put on these layers."""
        quantized = [layer.path for layer in layers if bits_of(layer.module) is not None]
        if not quantized:
            return []
        return [
            f"it has init_lora_weights={config.init_lora_weights!r}, and PEFT quantises what it "
            f"leaves of {quantized[0]} again, so its base cannot be computed from a quantised one. "
            "Put it on the 16-bit base and save it from there."
        ]
