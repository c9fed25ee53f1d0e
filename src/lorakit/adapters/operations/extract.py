"""Extraction of an adapter from the difference between a base and its full fine-tune."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import require_low_rank
from lorakit.adapters.ranks import default_initialization_settings
from lorakit.config import LoraConfig
from lorakit.config.frozen import freeze_fields
from lorakit.errors import AdapterMismatchError, AdapterStateError, QuantizationError
from lorakit.files.checkpoint_weights import CheckpointWeights
from lorakit.injection.selection.plan import InjectionPlan, plan_from_config
from lorakit.injection.selection.plan_from_tensors import saved_tensors
from lorakit.injection.selection.recorded_config import recorded_config
from lorakit.injection.selection.sites import Site
from lorakit.injection.state import base_modules, first_adapted
from lorakit.layers import LoraConv1D, LoraEmbedding
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.ops.factored_svd import truncate_dense

Source = str | Path | nn.Module


@dataclass(frozen=True)
class Extraction:
    """An adapter extracted from a full fine-tune, and how much of the change it keeps.

    Attributes:
        adapter: The adapter.
        kept: Share of ‖ΔW‖_F² that the adapter keeps, by module path; 1 if ΔW is zero.
        norms: ‖ΔW‖_F by module path.
        left_out: ‖Δ‖ by name of every other tensor that fine-tuning changed and that the adapter
            does not hold: those of modules that are not targeted, norms, biases.
    """

    adapter: Adapter
    kept: Mapping[str, float]
    norms: Mapping[str, float]
    left_out: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        freeze_fields(self)

    @property
    def share(self) -> float:
        """Share of Σ‖ΔW‖_F² kept over all adapted modules together."""
        whole = sum(norm**2 for norm in self.norms.values())
        kept = sum(self.kept[path] * norm**2 for path, norm in self.norms.items())
        return kept / whole if whole else 1.0


def extract_adapter(base: Source, tuned: Source, config: LoraConfig) -> Adapter:
    """Return `extract(base, tuned, config).adapter`; see there."""
    return extract(base, tuned, config).adapter


@torch.no_grad()
def extract(base: Source, tuned: Source, config: LoraConfig) -> Extraction:
    """Factorize the change of a full fine-tune: s B A is the best approximation of W - W0.

    Args:
        base: The model before fine-tuning: a checkpoint directory, a hub id or a model.
        tuned: The model after fine-tuning.
        config: Modules, ranks and scalings. Heads of `modules_to_save` and biases of `bias` are
            copied from the fine-tuned model.

    Returns: The adapter (factors in float32) with the share of ‖ΔW‖_F² kept in each module.

    Raises:
        MissingFileError: There is no safetensors checkpoint.
        TargetError: A pattern matches nothing, or a layer that cannot be adapted.
        ShapeError: A rank is larger than its matrix.
        AdapterMismatchError: A weight is missing in one of the two, or has another shape.
        AdapterFileError: The configuration uses a feature that cannot be extracted.
        AdapterStateError, QuantizationError: A model carries adapters, or is quantized.

    Memory: one weight of each checkpoint at a time, and ΔW in float32.
    Source: Eckart and Young 1936; large matrices by randomised SVD, see
        `lorakit.ops.factored_svd.truncate_dense`.
    """
    require_low_rank(Adapter(config, {}), "extract", "an adapter", "Leave such settings out.")
    before, after = _weights_of(base), _weights_of(tuned)
    model = tuned if isinstance(tuned, nn.Module) else after.skeleton()
    plan = plan_from_config(model, config)
    prefix = getattr(model, "base_model_prefix", "") or ""
    pair = _Pair(before, after, prefix)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kept: dict[str, float] = {}
    norms: dict[str, float] = {}
    for site in plan.sites:
        delta = _orient(site, pair.difference(_weight_of(site)))
        A, B = truncate_dense(delta, site.r)
        norm = norms[site.path] = _norm(delta)
        # The rest is orthogonal to B A, whose A has orthonormal rows: ‖BA‖ = ‖B‖.
        kept[site.path] = min(1.0, _norm(B) ** 2 / norm**2) if norm else 1.0
        factors[site.path] = (A.contiguous(), (B / site.scaling).contiguous())
    replaced = {name: pair.read_tuned(name) for name in _list_replaced(plan)}
    adapter = Adapter(
        recorded_config(model, plan).model_copy(update=default_initialization_settings()),
        factors,
        replaced,
        frozenset(s.path for s in plan.sites if issubclass(s.adapted_class, LoraEmbedding)),
        {},
        before.recorded,
        convolutions={
            site.path: shape
            for site in plan.sites
            if (shape := site.adapted_class.kernel_shape(site.module)) is not None
        },
    )
    return Extraction(adapter, kept, norms, pair.other_changes())


def _weights_of(source: Source) -> CheckpointWeights:
    if isinstance(source, nn.Module):
        _require_plain(source)
    return CheckpointWeights(source)


def _require_plain(model: nn.Module) -> None:
    if first_adapted(model) is not None:
        raise AdapterStateError(
            f"Cannot read the weights of this {type(model).__name__}: it carries adapters, "
            "expected plain weights. Call merge_and_unload or unload first."
        )
    quantized = [path for path, module in base_modules(model) if bits_of(module)]
    if quantized:
        raise QuantizationError(
            f"Cannot read the weights of this {type(model).__name__}: {quantized[0]} is quantized, "
            "expected dense weights. Load it without quantization."
        )


def _norm(tensor: Tensor) -> float:
    return cast(Any, tensor.double()).norm().item()


class _Pair:
    """A base and its fine-tune, read tensor by tensor, and the names of the tensors read."""

    def __init__(self, before: CheckpointWeights, after: CheckpointWeights, prefix: str) -> None:
        self._before, self._after, self._prefix = before, after, prefix
        self._used: set[str] = set()

    def _find(self, weights: CheckpointWeights, name: str) -> str:
        stored = weights.stored_name(name, self._prefix)
        if stored is None:
            raise AdapterMismatchError(
                f"No {name} in {weights.where}, expected the weights of one model before and "
                "after fine-tuning. A tied weight is stored under one of its names only: adapt the "
                "module of that name."
            )
        return stored

    def read_tuned(self, name: str) -> Tensor:
        """Return a tensor of the fine-tuned model."""
        stored = self._find(self._after, name)
        self._used.add(stored)
        return self._after.read(stored).clone()

    def difference(self, name: str) -> Tensor:
        """Return W - W0 in float32 (float64 for float64 weights)."""
        W0 = self._before.read(self._find(self._before, name))
        W = self.read_tuned(name)
        if W.shape != W0.shape:
            raise AdapterMismatchError(
                f"{name} has shape {tuple(W.shape)} in {self._after.where}, expected "
                f"{tuple(W0.shape)} as in {self._before.where}. Name the base that was fine-tuned; "
                "if its vocabulary was resized, leave the embeddings out."
            )
        dtype = torch.promote_types(torch.promote_types(W.dtype, W0.dtype), torch.float32)
        return W.to(dtype) - W0.to(dtype)

    def other_changes(self) -> dict[str, float]:
        """Return ‖Δ‖ of the tensors that differ and have not been read."""
        changes: dict[str, float] = {}
        for stored in self._after.names():
            earlier = self._before.stored_name(stored, self._prefix)
            if stored in self._used or earlier is None:
                continue
            W, W0 = self._after.read(stored), self._before.read(earlier)
            if W.shape == W0.shape and W.is_floating_point() and not torch.equal(W, W0.to(W.dtype)):
                changes[stored] = _norm(W.double() - W0.double())
        return changes


def _weight_of(site: Site) -> str:
    """Return the full name of the parameter that a site updates."""
    is_parameter = issubclass(site.adapted_class, AdaptedParameter)
    return site.path if is_parameter else f"{site.path}.{site.adapted_class.weight_name}"


def _orient(site: Site, delta: Tensor) -> Tensor:
    """Return a difference as (out, in), or (dim, vocabulary) for an embedding."""
    shape = site.adapted_class.kernel_shape(site.module)
    if site.slices is not None and shape is None:
        raise AdapterMismatchError(
            f"Cannot extract slices of {site.path}: got enable_lora={list(site.slices)}, expected "
            "the whole matrix. Leave enable_lora out."
        )
    if shape is not None and shape.groups > 1:
        raise AdapterMismatchError(
            f"Cannot extract {site.path}: got {shape.groups} groups of channels, expected one, as "
            "the update of a grouped layer is not a change of its weight. Leave that module out."
        )
    if shape is not None:
        return delta.flatten(1)
    if isinstance(site.module, AdaptedParameter):
        return site.module.orient(delta)
    if delta.ndim != 2:
        raise AdapterMismatchError(
            f"{_weight_of(site)} has shape {tuple(delta.shape)}, expected a matrix. Leave that "
            "module out."
        )
    is_transposed = issubclass(site.adapted_class, (LoraConv1D, LoraEmbedding))
    return delta.t() if is_transposed else delta


def _list_replaced(plan: InjectionPlan) -> list[str]:
    heads = [f"{p}.{name}" for p, module in plan.heads.items() for name in saved_tensors(module)]
    biases = [f"{path}.bias" for path in (*sorted(plan.site_biases), *plan.other_biases)]
    return heads + biases
