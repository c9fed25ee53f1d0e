"""Random initializations: they draw from torch's default generator and read no weight."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lorakit.config import LoraConfig
from lorakit.errors import ShapeError, first_few
from lorakit.initialization.protocol import FreshUpdate, Initialization, TargetLayer


class RandomFactors(Initialization):
    """Draws factors in place; those of stacked matrices one matrix after the other."""

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return random A and B in the dtype and on the device of the update's factors."""
        A, B = (torch.empty_like(f) for f in (fresh.update.lora_A, fresh.update.lora_B))
        is_stacked = A.ndim > 2
        for pair in zip(A, B, strict=True) if is_stacked else [(A, B)]:
            self.draw_(*pair, fresh.zero_factor)
        return A, B

    @abstractmethod
    def draw_(self, A: Tensor, B: Tensor, zero_factor: Literal["A", "B"]) -> None:
        """Fill A (r, in) and B (out, r)."""


class Kaiming(RandomFactors):
    """The value True: A is Kaiming-uniform with a = sqrt(5), B is zero.

    For an embedding A is zero and B standard normal.

    Source: the initialization of Microsoft's loralib.
    """

    fits_slices = True

    def draw_(self, A: Tensor, B: Tensor, zero_factor: Literal["A", "B"]) -> None:
        """Fill A (r, in) and B (out, r)."""
        if zero_factor == "A":
            nn.init.normal_(B)
            nn.init.zeros_(A)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
            nn.init.zeros_(B)


class RandomUpdate(Kaiming):
    """The value False: both factors are random, so that the update is not zero."""

    def draw_(self, A: Tensor, B: Tensor, zero_factor: Literal["A", "B"]) -> None:
        """Fill A (r, in) and B (out, r)."""
        super().draw_(A, B, zero_factor)
        nn.init.kaiming_uniform_(A if zero_factor == "A" else B, a=math.sqrt(5))


class Gaussian(RandomFactors):
    """The value "gaussian": one factor is normal with standard deviation 1/r, the other zero."""

    fits_slices = True

    def draw_(self, A: Tensor, B: Tensor, zero_factor: Literal["A", "B"]) -> None:
        """Fill A (r, in) and B (out, r)."""
        random_factor, zero = (B, A) if zero_factor == "A" else (A, B)
        nn.init.normal_(random_factor, std=1 / B.shape[-1])
        nn.init.zeros_(zero)


class Orthogonal(RandomFactors):
    """The value "orthogonal": A and B in two orthogonal halves of the r dimensions, so B A is zero.

    Source: I. Datta 2024, "Rethinking LoRA initialization".
    """

    def check(self, layers: Sequence[TargetLayer], config: LoraConfig) -> None:
        """Refuse a rank that cannot be halved.

        Raises:
            ShapeError: A rank is odd.
        """
        odd = [f"{layer.path} (r={layer.r})" for layer in layers if layer.r % 2]
        if odd:
            raise ShapeError(
                f"Cannot initialize {first_few(odd, 1)} with init_lora_weights='orthogonal': got "
                "an odd rank, expected an even one, half of it for each factor. Change r or "
                "rank_pattern."
            )

    def draw_(self, A: Tensor, B: Tensor, zero_factor: Literal["A", "B"]) -> None:
        """Fill A (r, in) and B (out, r)."""
        r = B.shape[-1]
        wide = torch.promote_types(A.dtype, torch.float32)
        basis, _ = torch.linalg.qr(torch.randn(r, r, dtype=wide, device=A.device))
        A.copy_(0.1 * basis[:, 0::2] @ torch.randn_like(A[: r // 2], dtype=wide))
        B.copy_(0.1 * torch.randn_like(B[:, : r // 2], dtype=wide) @ basis[:, 1::2].t())
