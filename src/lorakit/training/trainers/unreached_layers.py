"""Find adapted layers that received no gradient in any step.

A layer may receive gradients only from some examples (an expert, an image encoder), or lorakit
cannot follow the code that reads its weight. The run continues, and names these layers at its end.
"""

from collections import defaultdict
from typing import Any

from torch import nn
from transformers import TrainerCallback

from lorakit.layers import LowRankUpdate

_NAMED = 3


class UnreachedLayers(TrainerCallback):
    """Records the adapted layers whose factors have had no gradient so far.

    Attributes:
        first_step: Number of the first observed step, from 1; None before it.
        adapted: Number of layers that the adapter trains.
    """

    def __init__(self) -> None:
        self.first_step: int | None = None
        self.adapted = 0
        self._factors: dict[str, list[nn.Parameter]] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the layers that received a gradient in this step."""
        if self.first_step is None:
            self.first_step = state.global_step + 1
            self._factors = _trained_factors(kwargs["model"])
            self.adapted = len(self._factors)
        self._factors = {
            path: factors
            for path, factors in self._factors.items()
            if all(factor.grad is None for factor in factors)
        }

    @property
    def paths(self) -> list[str]:
        """Paths of the layers, sorted."""
        return sorted(self._factors)

    def note(self) -> str | None:
        """Return a note on these layers, or None if every layer received a gradient."""
        if not self._factors:
            return None
        named = ", ".join(self.paths[:_NAMED]) + (", …" if len(self.paths) > _NAMED else "")
        since = "any step" if self.first_step == 1 else f"any step since step {self.first_step}"
        return (
            f"{len(self.paths)} of {self.adapted} adapted layers got no gradient in {since}, so "
            f"they have not been trained: {named}. Leave them out of lora.target_modules, or train "
            "on examples that use them."
        )


def _trained_factors(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    found = defaultdict(list)
    for path, module in model.named_modules():
        if isinstance(module, LowRankUpdate):
            layer = path.removeprefix("_orig_mod.").split(".updates.")[0]
            found[layer] += [p for p in module.parameters(recurse=False) if p.requires_grad]
    return {layer: factors for layer, factors in found.items() if factors}
