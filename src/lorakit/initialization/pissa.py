"""PiSSA: factors from the largest singular vectors of the weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.initialization.protocol import FreshUpdate, FromWeight, TargetLayer


@dataclass(frozen=True)
class Pissa(FromWeight):
    """The values "pissa" and "pissa_niter_<n>": the best rank-r approximation of the weight.

    Attributes:
        iterations: Power steps of a randomised decomposition; None decomposes in full.

    Source: Meng et al. 2024, arXiv:2404.02948.
    """

    iterations: int | None = None

    def file_problems(self, layers: Sequence[TargetLayer], config: LoraConfig) -> list[str]:
        """Return why the factors of a PEFT file cannot be put on these layers."""
        if self.iterations is None:
            return super().file_problems(layers, config)
        return [
            f"it has init_lora_weights={config.init_lora_weights!r}, so its factors belong to a "
            "base that was changed by random factors, which cannot be computed again. Convert it "
            "with PEFT's path_initial_model_for_weight_conversion."
        ]

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return the principal factors of the weight."""
        update = fresh.update
        return principal_factors(fresh.matrix(), update.r, update.scaling, self.iterations)


@torch.no_grad()
def principal_factors(
    matrix: Tensor, r: int, scaling: float, iterations: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return A and B such that s B A is the best rank-r approximation, A and B equally large.

    Args:
        matrix: (out, in), float32 or float64.
        r: At most min(out, in).
        scaling: Dimensionless factor s, above 0.
        iterations: Power steps of a randomised decomposition, which draws from torch's default
            generator; None decomposes in full.

    Returns: A (r, in), B (out, r).

    Source: Meng et al. 2024, arXiv:2404.02948, equations 2 and 3; Eckart and Young 1936.
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, columns = torch.svd_lowrank(matrix, r, niter=iterations)
        right = columns.t()
    root = (values[:r] / scaling).sqrt()
    return root[:, None] * right[:r], left[:, :r] * root
