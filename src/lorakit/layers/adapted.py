"""The base class of adapted layers: named updates, which are active, and merging."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from lorakit.errors import AdapterStateError
from lorakit.layers.described import DescribedLayer
from lorakit.layers.executors.single import run_base, run_single
from lorakit.layers.replaced import swap_plain_class
from lorakit.layers.updates.low_rank_update import LowRankUpdate

READ_FLAG = "_is_hf_initialized"
"""Attribute that transformers sets on each parameter that it read from a checkpoint."""


class AdaptedLayer(DescribedLayer):
    """Mixin for a plain layer's class; instances come from `adapt_in_place`, not from __init__."""

    zero_factor: ClassVar[Literal["A", "B"]] = "B"
    """Which factor of a new update is zero."""

    is_linear: ClassVar[bool] = True
    """Whether "all-linear" includes layers of this kind."""
    weight_name: ClassVar[str] = "weight"
    """Name of the parameter that is updated."""

    @classmethod
    def adapt_in_place(cls, module: nn.Module) -> Self:
        """Swap the class of a plain layer and return the very same object, adapted."""
        swap_plain_class(module, cls)
        module.carry_nothing()  # type: ignore[operator]  # of the class given to it now
        return module  # type: ignore[return-value]  # of the class given to it now

    def carry_nothing(self) -> None:
        """Begin without updates."""
        self.updates = nn.ModuleDict()
        self.active_updates = ()
        self.kept_parameters = {}
        self.siblings = None
        self.executor = run_base
        self.prepared = self.known_terms = None

    def restore_in_place(self) -> None:
        """Swap the plain class back and leave no trace."""
        if self.siblings is not None:
            self.siblings.leave(self)
        del self.updates, self.active_updates, self.kept_parameters, self.siblings
        del self.executor, self.prepared, self.known_terms
        vars(self).pop("per_row_adapters", None)
        swap_plain_class(self, self.plain_class)

    def activate(self, names: tuple[str, ...]) -> None:
        """Let the updates of these adapters act, of those that the layer has."""
        self.active_updates = tuple(name for name in names if name in self.updates)
        self.choose_executor()

    def choose_executor(self) -> None:
        """Choose what computes the output, after updates, merging or rows have changed."""
        LowRankUpdate.count_exchange()  # what was prepared for other updates is no longer valid
        if self.per_row_adapters is not None:
            self.executor = self.per_row_adapters
        elif not self.acting_updates():
            self.executor = run_base
        else:
            self.executor = run_single if self.siblings is None else self.siblings

    def forward(self, input: Tensor) -> Tensor:
        """Map an input of the plain layer to an output of its shape."""
        return self.executor(self, input)

    def refuse_rows(self, name: str, reason: str) -> None:
        """Refuse batch rows with different adapters if one of these updates the layer.

        Args:
            name: What the layer is called.
            reason: What the adapter updates, and why rows cannot have it apart.

        Raises:
            AdapterStateError: Names the adapter.
        """
        if self.per_row_adapters is None or not self.acts_per_row():
            return
        for adapter in self.per_row_adapters.distinct:
            if adapter in self.updates:
                raise AdapterStateError(
                    f"Cannot run rows with different adapters through {name}: {adapter!r} updates "
                    f"{reason}; expected adapters of other layers. Run its rows in another batch, "
                    "with set_adapter."
                )

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in, out): columns of lora_A and rows of lora_B for a layer of this kind."""
        raise TypeError(f"{cls.__name__} does not say how large its factors are.")

    @classmethod
    def factor_shapes(cls, module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of lora_A and lora_B for a layer of this kind and a rank."""
        in_features, out_features = cls.factor_sizes(module)
        return (r, in_features), (out_features, r)

    def merge_obstacle(self) -> str | None:
        """Return why the updates cannot be added to the weight, or None."""
        if self.weight_name in self.weight_owner._parameters:
            return None
        return (
            "its weight is computed from others in each pass, by a hook or a parametrization "
            "(weight_norm, spectral_norm)"
        )

    @property
    def weight_owner(self) -> nn.Module:
        """The module that holds the parameter: the layer itself, except for adapted parameters."""
        return self

    @classmethod
    def compute_dtype_of(cls, module: nn.Module) -> torch.dtype:
        """Return the dtype of products with the weight of a layer of this kind."""
        return module.weight.dtype  # type: ignore[union-attr,return-value]  # an attribute of a module

    @classmethod
    def base_dtype_name(cls, module: nn.Module) -> str:
        """Return the format of the weight of a layer of this kind, for users to read."""
        return str(cls.compute_dtype_of(module)).removeprefix("torch.")

    def orient(self, delta_weight: Tensor) -> Tensor:
        """Return an update given as (out, in) in the orientation of `weight`."""
        return delta_weight

    @property
    def is_merged(self) -> bool:
        """Whether `weight` currently contains the updates."""
        return bool(self.kept_parameters)

    @torch.no_grad()
    def merge(self, dense_dtype: torch.dtype | None = None, requantize: bool = False) -> float:
        """Add the active updates to the weight: one sum in float32, rounded once.

        The base's parameters are kept, so `unmerge` restores the very objects, and a weight tied
        to another module stays unchanged there.

        Args:
            dense_dtype: dtype that a quantized weight becomes; None for its compute dtype.
            requantize: Quantize the sum again where the base is quantized.

        Returns: Largest absolute rounding error of the merged weight, in the weight's units.
        """
        updates = self.acting_updates()
        if not updates:
            return 0.0
        exact = base = self.exact_weight()
        for update in updates:
            # `orient` transposes or does nothing, so it turns the weight to (out, in) as well.
            exact = exact + self.orient(update.change(self.orient(base)))
        dtype = dense_dtype or self.compute_dtype_of(self)
        largest = self.put_merged(exact, dtype, requantize)
        bias = base_bias = getattr(self, "bias", None)
        for update in updates:
            for variant, tensor in zip(update.variants, update.companions(), strict=True):
                bias = variant.bias(bias, base_bias, tensor)
        if bias is not None and bias is not base_bias:
            dtype = dtype if base_bias is None else base_bias.dtype
            self._put_aside("bias", nn.Parameter(bias.detach().to(dtype), requires_grad=False))
        return largest

    def exact_weight(self) -> Tensor:
        """Return the base's weight in float32 at least, in its own orientation."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))

    def put_merged(self, exact: Tensor, dense_dtype: torch.dtype, requantize: bool) -> float:
        """Replace the base's weight by a merged one; return its largest rounding error."""
        merged = exact.to(self.weight.dtype)
        self._put_aside(self.weight_name, nn.Parameter(merged, requires_grad=False))
        return (merged.to(exact.dtype) - exact).abs().max().item() if merged.numel() else 0.0

    def _put_aside(self, parameter: str, replacement: nn.Parameter) -> None:
        owner = self.weight_owner
        kept = owner._parameters[parameter]
        if getattr(kept, READ_FLAG, False):
            setattr(replacement, READ_FLAG, True)
        self.kept_parameters[parameter] = kept
        setattr(owner, parameter, replacement)
        self.choose_executor()

    def unmerge(self) -> None:
        """Restore the base's parameters, byte for byte."""
        owner = self.weight_owner
        for parameter, kept in self.kept_parameters.items():
            device = getattr(owner, parameter).device
            if kept is not None and kept.device != device:
                kept.data = kept.data.to(device)
                if hasattr(kept, "quant_state"):
                    kept.quant_state.to(device)  # type: ignore[union-attr]  # an attribute of a module
            setattr(owner, parameter, kept)
        self.kept_parameters = {}
        self.choose_executor()

    def merged_parameters(self) -> dict[str, tuple[nn.Parameter, nn.Parameter | None]]:
        """Return the merged parameters, each with the base's that is kept, by name."""
        owner = self.weight_owner._parameters
        return {name: (owner[name], kept) for name, kept in self.kept_parameters.items()}  # type: ignore[misc]  # parameters by name

    def merge_again(self, parameters: dict[str, tuple[nn.Parameter, nn.Parameter | None]]) -> None:
        """Restore what `merged_parameters` returned, after unmerging has failed."""
        for name, (merged, kept) in parameters.items():
            setattr(self.weight_owner, name, merged)
            self.kept_parameters[name] = kept
        self.choose_executor()

    def keep_merged(self) -> None:
        """Make a merge final: the merged parameters become the layer's."""
        self.kept_parameters = {}
        self.choose_executor()
