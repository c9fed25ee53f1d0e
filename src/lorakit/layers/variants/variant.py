"""The protocol of a variant: its tensor, and what it does to operands, weights and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lorakit.ops import LowRankTerm


class UpdatedLayer(Protocol):
    """What a variant reads of a layer."""

    def norms_with(self, update: Any, term: LowRankTerm) -> Tensor:
        """Return ‖W0 + s B A‖ of each row of the weight with one of its updates, (out,)."""
        ...


class LayerKind(Protocol):
    """What a variant reads of a kind of layer."""

    zero_factor: ClassVar[Any]
    applies_row_scales: ClassVar[bool]


class Variant:
    """What an update has beside lora_A and lora_B. Derive from it to add a variant, and list it.

    A variant is a class without instances: its tensor belongs to the update, which has it as a
    parameter under the variant's name. The methods below change nothing unless they are overridden.

    Attributes:
        method: Name of the method, for readers.
        setting: Field of the configuration that turns it on; empty if layers decide.
        name: Name of its tensor in an update; empty for none.
        file_key: Last part of the tensor's key in PEFT's files; empty if it has none.
        effect: What an adapter with it does besides s B A, to follow "the adapter also …".
        is_of_base: Whether the tensor replaces the base's parameter of that name. Files hold it
            under the base's name, and only one of the adapters that act may have one.
        is_recorded: Whether PEFT's files record the setting.
        depends_on_base: Whether the weight changes by another amount than s B A, which depends on
            the weight. Several such updates are not one sum.
        is_all_in_factors: Whether the factors alone are the whole update, as combining, resizing,
            extracting and files for other programs require.
        frozen: Names of the update's parameters that are not trained.
    """

    method: ClassVar[str] = ""
    setting: ClassVar[str] = ""
    name: ClassVar[str] = ""
    file_key: ClassVar[str] = ""
    effect: ClassVar[str] = ""
    is_of_base: ClassVar[bool] = False
    is_recorded: ClassVar[bool] = True
    depends_on_base: ClassVar[bool] = False
    is_all_in_factors: ClassVar[bool] = False
    frozen: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def title(cls) -> str:
        """Return what a layer has with it, for messages: "a name (setting)"."""
        return f"a {cls.name} ({cls.setting})"

    @classmethod
    def obstacle(cls, kind: type[LayerKind]) -> str | None:
        """Return why layers of a kind cannot have it, to follow the kind's name, or None."""
        return None

    # ---- its tensor ----

    @classmethod
    def shape(cls, in_features: int, out_features: int) -> tuple[int, ...]:
        """Return the shape of the tensor: (out,) unless overridden.

        It does not depend on the rank, which may change while the tensor stays.
        """
        return (out_features,)

    @classmethod
    def initial(cls, layer: Any, update: Any) -> Tensor:
        """Return the tensor of a fresh update, whose factors are set."""
        raise TypeError(f"{cls.__name__} does not say what its tensor is at first.")

    @classmethod
    def to_file(cls, tensor: Tensor, kernel: Sequence[int]) -> Tensor:
        """Return the tensor as PEFT's files hold it.

        Args:
            tensor: The tensor.
            kernel: Elements of a convolution's kernel in each dimension; empty for other layers.
        """
        return tensor

    @classmethod
    def from_file(cls, tensor: Tensor) -> Tensor:
        """Undo `to_file`."""
        return tensor

    @classmethod
    def difference_in_peft(cls, groups: int) -> str | None:
        """Return what PEFT does in another way, to follow "PEFT …", or None.

        Args:
            groups: Groups of channels of a convolution; 1 for any other layer.
        """
        return None

    # ---- what it does ----

    @classmethod
    def term(
        cls, term: LowRankTerm, tensor: Tensor | None, layer: UpdatedLayer, update: Any
    ) -> LowRankTerm:
        """Return the operands of an update's low-rank path."""
        return term

    @classmethod
    def bias(
        cls, bias: Tensor | None, base_bias: Tensor | None, tensor: Tensor | None
    ) -> Tensor | None:
        """Return the bias that a layer adds, which the scaling of the update does not change.

        Args:
            bias: What it is so far, with the variants of other updates.
            base_bias: The base's.
            tensor: The variant's tensor.
        """
        return bias

    @classmethod
    def change(cls, delta: Tensor, W0: Tensor, tensor: Tensor | None) -> Tensor:
        """Return the weight with the update minus the weight without it, (out, in).

        Args:
            delta: s B A in float32 at least, (out, in); may be overwritten.
            W0: The base's weight in the same dtype.
            tensor: The variant's tensor.
        """
        return delta
