"""A low-rank update that is measured from where it began, so that the base can stay as it is."""

import torch
from torch import Tensor

from lorakit.errors import AdapterMismatchError
from lorakit.layers.updates.low_rank_update import LowRankUpdate


class OffsetUpdate(LowRankUpdate):
    """The update s (B A - B0 A0) of one layer, whose factors begin at A0 and B0.

    Other tools subtract s B0 A0 from the base's weight, once and for all. Here the weight is left
    alone, and the update is zero at the start, to the last bit:

        B A - B0 A0 = B (A - A0) + (B - B0) A0

    That form also keeps small changes of large factors apart from rounding, in 16 bits above all.
    Files hold B A - B0 A0 as an ordinary update of rank 2r.

    Attributes:
        initial_A: A0, (r, in); zero where the update has not been given a start.
        initial_B: B0, (out, r).

    Source: Meng et al. 2024, arXiv:2404.02948, appendix C.
    """

    initial_A: Tensor
    initial_B: Tensor

    def __init__(self, lora_A: Tensor, lora_B: Tensor, *args: object, **kwargs: object):
        super().__init__(lora_A, lora_B, *args, **kwargs)  # type: ignore[arg-type]
        self.register_buffer("initial_A", torch.zeros_like(lora_A))
        self.register_buffer("initial_B", torch.zeros_like(lora_B))

    @torch.no_grad()
    def set_offset_(self, A0: Tensor, B0: Tensor) -> None:
        """Take the factors that the update is measured from, in place."""
        self.initial_A.copy_(A0)
        self.initial_B.copy_(B0)

    @torch.no_grad()
    def initialize_at_(self, A0: Tensor, B0: Tensor) -> None:
        """Begin at these factors, in place; the update is zero then."""
        self.set_offset_(A0, B0)
        self.lora_A.copy_(self.initial_A)
        self.lora_B.copy_(self.initial_B)

    def operand_factors(self) -> tuple[Tensor, Tensor]:
        """Return the A (2r, in) and B (out, 2r) of s B A, through which gradients flow."""
        A = torch.cat([self.lora_A - self.initial_A, self.initial_A])
        return A, torch.cat([self.lora_B, self.lora_B - self.initial_B], dim=1)

    def saved_factors(self) -> tuple[Tensor, Tensor]:
        """Return A above A0, (2r, in), and B beside -B0, (out, 2r), detached."""
        A = torch.cat([self.lora_A.detach(), self.initial_A])
        return A, torch.cat([self.lora_B.detach(), -self.initial_B], dim=1)

    @torch.no_grad()
    def load_factors_(self, A: Tensor, B: Tensor) -> None:
        """Take factors of rank 2r as `saved_factors` gives them, in place.

        Raises:
            AdapterMismatchError: They are of another rank.
        """
        if A.shape[-2] != 2 * self.r or B.shape[-1] != 2 * self.r:
            raise AdapterMismatchError(
                f"Factors for an update that is measured from its start: got lora_A "
                f"{tuple(A.shape)} and lora_B {tuple(B.shape)}, expected rank {2 * self.r}, twice "
                "the trained one. Load what was saved of such an update."
            )
        self.lora_A.copy_(A[: self.r])
        self.initial_A.copy_(A[self.r :])
        self.lora_B.copy_(B[:, : self.r])
        self.initial_B.copy_(-B[:, self.r :])

    @property
    def keeps_saved_factors(self) -> bool:
        """Whether `saved_factors` are the parameters themselves: they are made of them."""
        return False

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Return s (B A - B0 A0) in float32 (float64 for float64 factors), (out, in)."""
        A, B = self.operand_factors()
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.scaling * (B.to(wide) @ A.to(wide))

    def extra_repr(self) -> str:
        """Show rank, scaling and dropout."""
        return f"{super().extra_repr()}, measured from its start"
