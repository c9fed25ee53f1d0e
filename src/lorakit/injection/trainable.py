"""Counting the parameters that a model has and trains."""

from dataclasses import dataclass

from torch import nn

from lorakit.injection.state import adapted_layers, own_parameters, unwrap
from lorakit.layers.bitsandbytes_storage import parameter_count


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, in elements.

    Attributes:
        trainable: Parameters that require gradients.
        total: All parameters, including the base's frozen copies of trained heads; this is how
            PEFT counts "all params".
        lora: Parameters in lora_A, lora_B and what variants add, of every adapter, active or not.
        replaced: Parameters in trained heads and biases of every adapter.
        base: Parameters of the base; total = base + lora + replaced.
    """

    trainable: int
    total: int
    lora: int
    replaced: int
    base: int

    @property
    def trainable_share(self) -> float:
        """Trainable / total, the share PEFT prints."""
        return self.trainable / self.total if self.total else 0.0

    @property
    def trainable_share_of_base(self) -> float:
        """Trainable / base, the share the LoRA paper quotes."""
        return self.trainable / self.base if self.base else 0.0


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model; tied ones count once, quantized ones as before quantization.

    Args:
        model: Any torch module, with adapters or without, also on the meta device.
    """
    model = unwrap(model)
    adapter_ids: dict[int, int] = {}
    for _, layer in adapted_layers(model):
        for update in layer.updates.values():
            left_out = {variant.name for variant in update.variants if variant.is_of_base}  # type: ignore[union-attr]  # a LowRankUpdate
            adapter_ids |= {
                id(p): p.numel() for name, p in update.named_parameters() if name not in left_out
            }
    lora = sum(adapter_ids.values())
    of_base = own_parameters(model)
    trainable = total = base = 0
    for parameter in model.parameters():
        count = parameter_count(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
        base += count if id(parameter) in of_base else 0
    return ParameterCount(trainable, total, lora, total - base - lora, base)


def trainable_text(model: nn.Module) -> str:
    """Return the line PEFT prints, which counts the frozen copies of trained heads in "all".

    For DistilBERT with r=8 on q_lin and v_lin and two labels:
    "trainable params: 739,586 || all params: 67,694,596 || trainable%: 1.0925".
    """
    count = count_parameters(model)
    return (
        f"trainable params: {count.trainable:,} || all params: {count.total:,} || "
        f"trainable%: {100 * count.trainable_share:.4f}"
    )


def print_trainable_parameters(model: nn.Module) -> None:
    """Print `trainable_text(model)`."""
    print(trainable_text(model))  # noqa: T201 - printing is what this function is for
