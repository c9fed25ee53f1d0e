"""A low-rank update that is measured from its first factors, so that the base stays as it is."""

import torch
from torch import Tensor

from lorakit.errors import AdapterMismatchError
from lorakit.layers.updates.low_rank_update import LowRankUpdate


class OffsetUpdate(LowRankUpdate):
    """The update s (B A - B0 A0) of one layer, whose first factors are A0 and B0.

    Other tools subtract s B0 A0 from the base's weight. Here the weight stays as it is, and the
    update is exactly zero at first:

        B A - B0 A0 = B (A - A0) + (B - B0) A0

    This form also protects small changes of large factors from rounding, above all in 16 bits.
    Files hold B A - B0 A0 as an ordinary update of rank 2r.

    Attributes:
        initial_A: A0, (r, in); zero until the update is initialized.
        initial_B: B0, (out, r).

    Source: Meng et al. 2024, arXiv:2404.02948, appendix C.
    """

    sharding_obstacle = (
        "is measured from its initialization (lora.init_lora_weights pissa, olora or lora_ga), "
        "expected another initialization. Change it"
    )

    keeps_saved_factors = False

    initial_A: Tensor
    initial_B: Tensor

    def __init__(self, lora_A: Tensor, lora_B: Tensor, *args: object, **kwargs: object):
        super().__init__(lora_A, lora_B, *args, **kwargs)  # type: ignore[arg-type]  # those of LowRankUpdate
        self.register_buffer("initial_A", torch.zeros_like(lora_A))
        self.register_buffer("initial_B", torch.zeros_like(lora_B))

    @torch.no_grad()
    def set_offset_(self, A0: Tensor, B0: Tensor) -> None:
        """Set the factors that the update is measured from, in place."""
        self.initial_A.copy_(A0)
        self.initial_B.copy_(B0)

    @torch.no_grad()
    def initialize_at_(self, A0: Tensor, B0: Tensor) -> None:
        """Set these as first and as current factors, in place; the update is zero then."""
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
            AdapterMismatchError: Their rank is not 2r.
        """
        if A.shape[-2] != 2 * self.r or B.shape[-1] != 2 * self.r:
            raise AdapterMismatchError(
                f"Factors for an update that is measured from its first factors: got lora_A "
                f"{tuple(A.shape)} and lora_B {tuple(B.shape)}, expected rank {2 * self.r}, twice "
                "the trained one. Load what was saved of such an update."
            )
        self.lora_A.copy_(A[: self.r])
        self.initial_A.copy_(A[self.r :])
        self.lora_B.copy_(B[:, : self.r])
        self.initial_B.copy_(-B[:, self.r :])

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Return s (B A - B0 A0) in float32 (float64 for float64 factors), (out, in)."""
        A, B = self.operand_factors()
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.scaling * (B.to(wide) @ A.to(wide))

    def extra_repr(self) -> str:
        """Show rank, scaling and dropout."""
        return f"{super().extra_repr()}, measured from its first factors"
