"""What an adapted linear layer computes from: its weight, its bias and its low-rank terms.

Executors and autograd nodes know nothing else of a layer. A layer's output is

    h = x W0ᵀ + b + Σ s (drop(x) Aᵀ) Bᵀ

and a term with a row scale c multiplies the rows of the weight that it updates:

    h = c (x W0ᵀ + s (drop(x) Aᵀ) Bᵀ) + b      with c = lengths / norms

Autograd nodes take tensors, not structures: `flatten` takes operands apart into constants and
tensors, and `unflatten` puts them together again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorakit.errors import ShapeError
from lorakit.ops.quantized import Layout, Weight, parts, tensor_count, weight_from


class RowScale(NamedTuple):
    """The scale c = lengths / norms of each row of an updated weight."""

    lengths: Tensor
    """Trained lengths of the rows, (out,)."""
    norms: Tensor
    """‖W0 + s B A‖ of each row, (out,); a constant for the gradients."""


class LowRankTerm(NamedTuple):
    """One update on the low-rank path of a layer."""

    A: Tensor
    """Down-projection, (r, in)."""
    B: Tensor
    """Up-projection, (out, r)."""
    scaling: float
    """Dimensionless factor s."""
    drop_probability: float = 0.0
    """Dropout on this term's input; needs a seed when above 0."""
    seed: Tensor | None = None
    """0-dimensional int64 tensor from `draw_seed`; terms with the same one share their mask."""
    row_scale: RowScale | None = None
    """Scale of the rows of W0 + s B A, or None."""


class LinearOperands(NamedTuple):
    """One adapted linear layer."""

    W0: Weight
    """Weight, (out, in), usually frozen; a transposed view or a quantized weight also works."""
    bias: Tensor | None
    """(out,)."""
    terms: Sequence[LowRankTerm]
    """Updates to add."""

    @property
    def is_one_product(self) -> bool:
        """Whether one sum holds the output: several terms must not scale different sums."""
        return len(self.terms) <= 1 or all(term.row_scale is None for term in self.terms)

    @property
    def row_scale(self) -> RowScale | None:
        """The scale of the layer's only term; None without one."""
        return self.terms[0].row_scale if len(self.terms) == 1 else None


class TermNeeds(NamedTuple):
    """The gradients that one term needs."""

    A: bool
    B: bool
    lengths: bool = False


class LinearNeeds(NamedTuple):
    """The gradients that one layer needs."""

    W0: bool
    bias: bool
    terms: Sequence[TermNeeds]


class TermGradients(NamedTuple):
    """The gradients of one term, each None if it is not needed; each in the operand's dtype."""

    A: Tensor | None = None
    B: Tensor | None = None
    lengths: Tensor | None = None


class LinearGradients(NamedTuple):
    """The gradients of one layer, each None if it is not needed."""

    W0: Tensor | None
    bias: Tensor | None
    terms: Sequence[TermGradients]


def check_shapes(shape: torch.Size, layer: LinearOperands) -> None:
    """Check the shapes of the input and of a layer's operands.

    Raises:
        ShapeError: They do not fit; names the shapes.
    """
    out_features, in_features = layer.W0.shape
    if shape[-1] != in_features:
        raise ShapeError(
            f"The input of an adapted layer has shape {tuple(shape)}, expected its last "
            f"dimension to be {in_features}, as the weight is {(out_features, in_features)}."
        )
    for term in layer.terms:
        r = term.A.shape[0]
        if term.A.shape != (r, in_features) or term.B.shape != (out_features, r):
            raise ShapeError(
                f"lora_A {tuple(term.A.shape)} and lora_B {tuple(term.B.shape)} do not fit the "
                f"weight {(out_features, in_features)}, expected (r, {in_features}) and "
                f"({out_features}, r)."
            )


class TermSpec(NamedTuple):
    """Constants of a term that an autograd node keeps."""

    scaling: float
    drop_probability: float
    seed: int
    """Position among the group's seeds; -1 for none."""
    is_scaled: bool
    """Whether it has a row scale."""


class LayerSpec(NamedTuple):
    """Constants of a layer that an autograd node keeps."""

    layout: Layout | None
    """Layout of its weight; None for a dense one."""
    terms: tuple[TermSpec, ...]


Spec = tuple[LayerSpec, ...]


def flatten(layers: Sequence[LinearOperands]) -> tuple[Spec, list[Tensor | None]]:
    """Return the constants, and the tensors: those of each layer; then the seeds."""
    spec: list[LayerSpec] = []
    tensors: list[Tensor | None] = []
    seeds: list[Tensor] = []
    for W0, bias, terms in layers:
        layout, weight = parts(W0)
        tensors += [*weight, bias]
        specs: list[TermSpec] = []
        for A, B, scaling, p, seed, row_scale in terms:
            tensors += [A, B, *(row_scale or ())]
            is_scaled = row_scale is not None
            if seed is None or p == 0:
                specs.append(TermSpec(scaling, 0.0, -1, is_scaled))
                continue
            known = [i for i, other in enumerate(seeds) if other is seed]
            if not known:
                seeds.append(seed)
            specs.append(TermSpec(scaling, p, known[0] if known else len(seeds) - 1, is_scaled))
        spec.append(LayerSpec(layout, tuple(specs)))
    return tuple(spec), [*tensors, *seeds]


def unflatten(spec: Spec, tensors: Sequence[Any]) -> list[LinearOperands]:
    """Undo `flatten`."""
    seeded = [term.seed for _, terms in spec for term in terms]
    count = max(seeded, default=-1) + 1
    seeds = tensors[len(tensors) - count :]
    given = iter(tensors)
    layers: list[LinearOperands] = []
    for layout, specs in spec:
        W0, bias = weight_from(layout, given), next(given)
        terms: list[LowRankTerm] = []
        for scaling, p, seed, is_scaled in specs:
            A, B = next(given), next(given)
            row_scale = RowScale(next(given), next(given)) if is_scaled else None
            drawn = seeds[seed] if seed >= 0 else None
            terms.append(LowRankTerm(A, B, scaling, p, drawn, row_scale))
        layers.append(LinearOperands(W0, bias, terms))
    return layers


def needs_of(spec: Spec, flags: Sequence[bool]) -> list[LinearNeeds]:
    """Return which gradients each layer needs, from flags in the order of `flatten`."""
    needs: list[LinearNeeds] = []
    for W0, bias, terms in unflatten(spec, flags):
        wanted: list[Any] = [(A, B, bool(scale and scale.lengths)) for A, B, *_, scale in terms]
        # A quantized weight has no gradient.
        needs.append(LinearNeeds(W0 is True, bool(bias), [TermNeeds(*one) for one in wanted]))
    return needs


def flat_gradients(
    spec: Spec, gradients: Sequence[LinearGradients], tensors: int
) -> list[Tensor | None]:
    """Return gradients in the order of `flatten`, which returned this number of tensors."""
    flat: list[Tensor | None] = []
    for (layout, specs), (grad_W0, grad_bias, terms) in zip(spec, gradients, strict=True):
        flat += [grad_W0] if layout is None else [None] * tensor_count(layout)
        flat.append(grad_bias)
        for term, (grad_A, grad_B, grad_lengths) in zip(specs, terms, strict=True):
            flat += [grad_A, grad_B, *([grad_lengths, None] if term.is_scaled else [])]
    return flat + [None] * (tensors - len(flat))
