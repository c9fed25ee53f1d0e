"""One low-rank update: its two factors, its scaling, its dropout and its variants."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.variants.table import VARIANTS, variant_named
from lorakit.layers.variants.variant import Variant
from lorakit.ops import LowRankTerm, draw_seed

_FACTORS = ("lora_A", "lora_B")

_numbers = count(1)
"""Counts of exchanges: each is taken once, also where threads take them at the same time."""


class LowRankUpdate(nn.Module):
    """The update s B A of one layer, and what its variants add.

    Attributes:
        lora_A: Down-projection, (r, in); for an embedding (r, vocabulary).
        lora_B: Up-projection, (out, r).
        scaling: Dimensionless factor s: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA.
        drop_probability: Dropout on the input of the low-rank path, in training mode only.
        variants: What the update has beside its factors. The tensor of each is a parameter under
            the variant's name, and None where the update lacks the variant.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float
    drop_probability: float
    variants: tuple[type[Variant], ...]

    sharding_obstacle: ClassVar[str | None] = None
    """Why its parameters cannot be sharded, to follow its path; None if they can."""

    keeps_saved_factors: ClassVar[bool] = True
    """Whether `saved_factors` are the parameters themselves, not computed from them."""

    spare_rank: int = 0
    """Rows of lora_A and columns of lora_B at the end that are zero and reserved for adapters of a
    larger rank, which can then replace this one without a change of any shape."""

    exchanges: ClassVar[int] = 0
    """Number of times an attribute of any update was set, its parameters moved, or other updates
    began to act: what was prepared from updates is valid until it changes. Values that change in
    place do not count."""

    changed: int = 0
    """The count of exchanges when an attribute of this update was set, or its parameters moved."""

    def __init__(
        self,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        drop_probability: float = 0.0,
        variants: Sequence[type[Variant]] = (),
        *,
        is_training: bool = True,
        **companions: Tensor | None,
    ):
        """Create the update; see the class.

        Variants with a tensor come with it: `companions` are the tensors by name, None for none.
        """
        super().__init__()
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        # Not by assignments, each of which looks for parameters and modules.
        vars(self).update(
            variants=tuple(variants),
            scaling=scaling,
            drop_probability=drop_probability,
            training=is_training,
        )
        # So that parameters have one order.
        self._parameters.update({variant.name: None for variant in VARIANTS if variant.name})
        for name, tensor in companions.items():
            if tensor is not None:
                is_one = isinstance(tensor, nn.Parameter)
                self.register_parameter(name, tensor if is_one else nn.Parameter(tensor))
        vars(self)["changed"] = next(_numbers)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, and count it; while it is created, no layer can have prepared it."""
        super().__setattr__(name, value)  # type: ignore[arg-type]  # as nn.Module's
        if self.changed:
            self._count_exchange()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; that of a variant brings the variant, None takes it away."""
        super().register_parameter(name, param)
        if name not in _FACTORS:
            carried = {variant for variant in self.variants if variant.name != name}
            carried |= set() if param is None else {variant_named(name)}
            self.variants = tuple(variant for variant in VARIANTS if variant in carried)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._count_exchange()
        return super()._apply(fn, recurse)

    @staticmethod
    def count_exchange() -> int:
        """Begin a new count of exchanges and return it."""
        LowRankUpdate.exchanges = number = next(_numbers)
        return number

    def _count_exchange(self) -> None:
        vars(self)["changed"] = LowRankUpdate.count_exchange()

    def require_gradients_(self, required: bool) -> None:
        """Set whether the parameters require gradients; what a variant freezes never does."""
        frozen = frozenset[str]().union(*(variant.frozen for variant in self.variants))
        for name, parameter in self._parameters.items():
            wanted = required and name not in frozen
            if parameter is not None and parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)

    @property
    def r(self) -> int:
        """Rank of the trained update: rows of lora_A and columns of lora_B that are not spare."""
        return self.lora_A.shape[-2] - self.spare_rank

    @torch.no_grad()
    def reserve_(self, max_rank: int) -> None:
        """Reserve room for a larger rank: zeros, which stay zero in training."""
        spare = max_rank - self.lora_A.shape[-2]
        if spare > 0:
            self.lora_A = nn.Parameter(F.pad(self.lora_A, (0, 0, 0, spare)))
            self.lora_B = nn.Parameter(F.pad(self.lora_B, (0, spare)))
            self.spare_rank += spare

    @torch.no_grad()
    def exchange_factors_(self, A: Tensor, B: Tensor) -> None:
        """Replace the factors by others of at most the reserved rank, in place.

        A (r, in) and B (out, r) have to go with this update's scaling.
        """
        spare = self.lora_A.shape[-2] - A.shape[-2]
        self.lora_A.copy_(F.pad(A, (0, 0, 0, spare)))
        self.lora_B.copy_(F.pad(B, (0, spare)))
        # What was prepared from this update, such as compiled code, stays valid.
        vars(self)["spare_rank"] = spare

    def operand_factors(self) -> tuple[Tensor, Tensor]:
        """Return the A (r, in) and B (out, r) of s B A, through which gradients flow.

        Updates that keep their factors in another form compute these from them.
        """
        return self.lora_A, self.lora_B

    def saved_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (r, in) and B (out, r) as files hold them: detached views of the parameters."""
        A, B = self.operand_factors()
        rank = A.shape[-2] - self.spare_rank
        return A.detach()[..., :rank, :], B.detach()[..., :rank]

    @torch.no_grad()
    def set_factors_(self, A: Tensor, B: Tensor) -> None:
        """Copy A and B into lora_A and lora_B, whose spare rank stays zero."""
        lora_A, lora_B = (
            LowRankUpdate.saved_factors(self) if self.spare_rank else (self.lora_A, self.lora_B)
        )
        lora_A.copy_(A)
        lora_B.copy_(B)

    def load_factors_(self, A: Tensor, B: Tensor) -> None:
        """Load what `saved_factors` returned, in place.

        Raises:
            AdapterMismatchError: The factors do not have the form of this kind of update.
        """
        self.set_factors_(A, B)

    def misfit(self, A: Tensor, B: Tensor) -> str | None:
        """Return why saved factors of fitting sizes do not have this update's form, or None."""
        return None

    @property
    def drops(self) -> bool:
        """Whether dropout currently acts."""
        return self.training and self.drop_probability > 0

    def term(self, seed: Tensor | None = None) -> LowRankTerm:
        """Return the operands of one forward pass.

        Args:
            seed: Seed of the dropout mask that this update shares with others on the same
                activation; None draws one if dropout acts.
        """
        A, B = self.operand_factors()
        if not self.drops:
            return LowRankTerm(A, B, self.scaling)
        p, seed = self.drop_probability, draw_seed() if seed is None else seed
        return LowRankTerm(A, B, self.scaling, p, seed)

    def forward(self, seed: Tensor | None = None) -> tuple[LowRankTerm, list[Tensor | None]]:
        """Return the operands of one forward pass, and the tensors of the variants.

        Layers call the module instead of reading its parameters so that hooks on it run, such as
        those of accelerate that load offloaded parameters.
        """
        return self.term(seed), self.companions()

    def companions(self) -> list[Tensor | None]:
        """Return the tensor of each variant; None for one that has none."""
        return [self._parameters[v.name] if v.name else None for v in self.variants]

    @property
    def depends_on_base(self) -> bool:
        """Whether it changes the weight by another amount than s B A."""
        return any(variant.depends_on_base for variant in self.variants)

    def delta_weight(self) -> Tensor:
        """Return s B A in float32 (float64 for float64 factors), (out, in)."""
        A, B = self.saved_factors()
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.scaling * (B.to(wide) @ A.to(wide))

    def change(self, W0: Tensor) -> Tensor:
        """Return the weight with the update minus W0, the base's in float32 at least, (out, in)."""
        delta = self.delta_weight().to(W0.device)
        for variant, tensor in zip(self.variants, self.companions(), strict=True):
            delta = variant.change(delta, W0, tensor)
        return delta

    def extra_repr(self) -> str:
        """Show rank, scaling, dropout and variants."""
        text = f"r={self.r}, scaling={self.scaling:g}"
        text += f", dropout={self.drop_probability:g}" if self.drop_probability else ""
        return text + "".join(f", {one.method}" for one in self.variants if not one.is_of_base)


def shared_seed(updates: Iterable[LowRankUpdate]) -> Tensor | None:
    """Draw the seed of the mask that updates on one activation share; None if none drops."""
    return draw_seed() if any(update.drops for update in updates) else None


def are_one_product(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether one sum holds the output of a layer with these updates.

    If there are several and one depends on the base, each depends on a different sum.
    """
    return len(updates) <= 1 or not any(update.depends_on_base for update in updates)
