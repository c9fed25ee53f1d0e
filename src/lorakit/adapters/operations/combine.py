"""Weighted combination of several adapters of one base."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.compatibility import (
    common_base,
    common_base_weights,
    common_heads,
    common_settings,
)
from lorakit.adapters.operations.pruning import (
    MajoritySign,
    drop_random,
    elect_signs,
    keep_largest,
)
from lorakit.adapters.operations.requirements import require_low_rank
from lorakit.adapters.operations.resize import require_rank_fits
from lorakit.adapters.ranks import with_unit_scaling
from lorakit.errors import AdapterMismatchError, ConfigError, did_you_mean
from lorakit.injection import Injection, add_adapter
from lorakit.injection.state import check_new_name, require_adapter, require_unmerged
from lorakit.ops.factored_svd import truncate_dense, truncate_product

CombinationMethod = Literal[
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune_svd",
]
"""Combination methods; the names are PEFT's."""

METHODS: tuple[str, ...] = get_args(CombinationMethod)
_DEFAULT_DENSITY = 0.5

Weighted = list[tuple[float, float, Tensor, Tensor]]
"""(weight, scaling, A, B) of each adapter that adapts a module."""


def combine_adapters(
    model: nn.Module,
    weights: Mapping[str, float],
    name: str,
    method: CombinationMethod = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    majority_sign: MajoritySign = "total",
    seed: int = 0,
    heads_from: str | None = None,
    trainable: bool = False,
) -> Injection:
    """Combine adapters of a model into a new one, which becomes the only active adapter.

    The new adapter has scaling 1. The weights apply to the scaled updates, also of adapters with
    rsLoRA or different alphas.

    Args:
        model: A model with adapters.
        weights: Weight of each adapter to combine, by name; negative ones subtract.
        name: Name of the new adapter.
        method: See `combine`.
        density: See `combine`.
        rank: See `combine`.
        majority_sign: See `combine`.
        seed: See `combine`.
        heads_from: See `combine`.
        trainable: Whether the new adapter's parameters require gradients.

    Returns: What was added.

    Raises:
        AdapterNameError: An adapter does not exist, or the new name is taken or malformed.
        AdapterStateError: The model is merged.
        AdapterMismatchError, AdapterFileError, ConfigError, ShapeError: As in `combine`; the
            model is not modified.
    """
    require_unmerged(model, "combine adapters")
    check_new_name(model, name)
    for one in weights:
        require_adapter(model, one)
    adapters = {one: Adapter.from_model(model, one) for one in weights}
    made = combine(
        adapters,
        weights,
        method,
        density=density,
        rank=rank,
        majority_sign=majority_sign,
        seed=seed,
        heads_from=heads_from,
    )
    return add_adapter(model, made, name, trainable=trainable)


@torch.no_grad()
def combine(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    method: CombinationMethod = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    majority_sign: MajoritySign = "total",
    seed: int = 0,
    heads_from: str | None = None,
    base_model: str | None = None,
) -> Adapter:
    """Combine adapters of one base into a new one, without a model.

    With the weight w_i times the scaling s_i of adapter i, and its update ΔW_i:

    - "linear": A = Σ ±√|w_i s_i| A_i and B = Σ √|w_i s_i| B_i. Cheap, and keeps the rank, but the
      product has terms that mix the adapters; exact for one adapter only.
    - "cat": concatenated factors: exactly Σ w_i ΔW_i, with the sum of the ranks (at most the
      smaller side of the matrix).
    - "svd": the best approximation of Σ w_i ΔW_i of rank `rank`.
    - "magnitude_prune": "linear" on factors pruned to the largest `density` of their elements.
    - "dare_linear": "linear" on factors of which a random share `density` is kept and divided by
      `density`.
    - "ties": the factors are pruned to the largest `density`; for each element the majority's sign
      is elected, and the weighted mean of the elements with that sign is taken.
    - "dare_ties": "ties" on factors pruned as in "dare_linear".
    - "..._svd": the same four on the updates ΔW_i instead of their factors, reduced to rank `rank`
      (for large matrices by a randomised SVD); forms one dense matrix per adapter, one module at a
      time.

    A module that an adapter does not adapt counts as an update of zero. Heads and biases trained
    in full are copied from the one adapter that has them. They have no weighted sum: if two
    adapters have different ones, `heads_from` names the adapter whose are kept.

    Args:
        adapters: The adapters by name; they are not modified.
        weights: Weight of each adapter; negative ones subtract.
        method: Combination method.
        density: Share of elements that pruning methods keep, above 0 and at most 1; None is 0.5.
        rank: Rank of the result, for methods with SVD; None takes the adapters' largest rank.
        majority_sign: For TIES: whether the sign with the larger sum wins ("total") or the more
            frequent one ("frequency"), before weighting.
        seed: Seed of DARE.
        heads_from: Name of the adapter whose heads and biases are kept if they differ.
        base_model: Name of the base to record; required if the adapters record different names
            for the same base.

    Returns: The adapter, with scaling 1; factors in float32 (float64 if one of them is).

    Raises:
        ConfigError: A method, weight, density or rank is unknown or out of range, or an option
            does not belong to the method.
        AdapterMismatchError: Bases, shapes, ranks, tasks or trained heads do not match; names the
            first reason.
        AdapterFileError: An adapter is more than s B A, or not finite.
        ShapeError: `rank` is larger than a side of a matrix.

    Source: TIES: Yadav et al. 2023, arXiv:2306.01708; DARE: Yu et al. 2023, arXiv:2311.03099;
        weights and densities mean what they mean in PEFT's add_weighted_adapter.
    """
    density = _check_options(adapters, weights, method, density, rank)
    if heads_from is not None and heads_from not in adapters:
        raise ConfigError(
            f"Cannot keep the heads of {heads_from!r}: got heads_from={heads_from!r}, expected one "
            f"of {', '.join(adapters)}.{did_you_mean(heads_from, list(adapters))}"
        )
    for name, adapter in adapters.items():
        require_low_rank(adapter, "combine", name, takes_stacked=True)
    problems: list[str] = []
    base = base_model or common_base(adapters, problems)
    paths = list(dict.fromkeys(path for one in adapters.values() for path in one.factors))
    needs_one_rank = method != "cat" and not method.endswith("svd")
    for path in paths:
        problems += _misfits(path, adapters, needs_one_rank)
    base_weights = common_base_weights(adapters, problems)
    settings = common_settings(adapters, paths, problems)
    if problems:
        more = f" ({len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"Cannot combine {', '.join(adapters)}: {problems[0]}{more} Combine adapters of one "
            "base and one kind."
        )
    replaced = common_heads(adapters, heads_from)
    if rank is not None:
        for adapter in adapters.values():
            require_rank_fits(adapter.factors, rank, "combine adapters")
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path in paths:
        updates, dtype = _weigh_updates(path, adapters, weights)
        if method == "cat":
            pair = _concatenate(updates)
        elif method.endswith("svd"):
            pair = _combine_by_svd(updates, method, rank, density, majority_sign, generator)
        else:
            pair = _combine_factors(updates, method, density, majority_sign, generator)
        factors[path] = (pair[0].to(dtype).contiguous(), pair[1].to(dtype).contiguous())
    embeddings = frozenset[str]().union(*(one.embeddings for one in adapters.values()))
    convolutions = {p: shape for one in adapters.values() for p, shape in one.convolutions.items()}
    config = with_unit_scaling(settings, factors)
    return Adapter(
        config, factors, replaced, embeddings, base_weights, base, convolutions=convolutions
    )


def _check_options(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    method: str,
    density: float | None,
    rank: int | None,
) -> float:
    """Return the density, 1 for methods that prune nothing."""
    if method not in METHODS:
        raise ConfigError(
            f"Unknown method: got {method!r}, expected one of {', '.join(METHODS)}."
            f"{did_you_mean(str(method), METHODS)}"
        )
    if not adapters:
        raise ConfigError("Nothing to combine: got no adapter, expected at least one. Name some.")
    if adapters.keys() != weights.keys():
        raise ConfigError(
            f"Weights and adapters differ: got weights for {list(weights)}, expected weights for "
            f"{list(adapters)}. Give each adapter one weight."
        )
    bad = {name: w for name, w in weights.items() if isinstance(w, bool) or not abs(w) < 1e30}
    if bad:
        name, weight = next(iter(bad.items()))
        raise ConfigError(
            f"Cannot combine adapters: got weight {weight!r} for {name}, expected a finite number. "
            "Negative ones subtract."
        )
    prunes = method.startswith(("ties", "dare", "magnitude_prune"))
    if density is not None and not prunes:
        raise ConfigError(
            f"Method {method!r} prunes nothing: got density={density!r}, expected none. Leave it "
            "out, or use ties, dare_linear, dare_ties or magnitude_prune."
        )
    if density is not None and not 0 < density <= 1:
        raise ConfigError(
            f"Cannot keep a share of density={density!r} of the numbers, expected one above 0 and "
            "at most 1. Give 0.5 to keep half."
        )
    if rank is not None and not method.endswith("svd"):
        raise ConfigError(
            f"Method {method!r} determines the rank: got rank={rank!r}, expected none. Leave it "
            "out, or use svd."
        )
    if rank is not None and (isinstance(rank, bool) or rank < 1):
        raise ConfigError(
            f"Cannot combine adapters: got rank={rank!r}, expected a whole number above 0. Give a "
            "rank."
        )
    return (_DEFAULT_DENSITY if density is None else density) if prunes else 1.0


def _misfits(path: str, adapters: Mapping[str, Adapter], needs_one_rank: bool) -> list[str]:
    """Return why the updates of one module do not match."""
    here = {name: one.factors[path] for name, one in adapters.items() if path in one.factors}
    if len({A.shape[:-2] for A, _ in here.values()}) > 1:
        text = ", ".join(f"{tuple(A.shape[:-2])} in {name}" for name, (A, _) in here.items())
        return [f"{path} stacks matrices as {text}; expected one number of them."]
    sizes = {name: (A.shape[-1], B.shape[-2]) for name, (A, B) in here.items()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"from {i} to {o} in {name}" for name, (i, o) in sizes.items())
        return [f"{path} maps {text}; expected one shape."]
    if len({path in adapters[name].embeddings for name in here}) > 1:
        return [f"{path} is an embedding in one adapter and a linear layer in another."]
    if len({adapters[name].convolutions.get(path) for name in here}) > 1:
        return [f"{path} has different kernels in different adapters."]
    ranks = {name: A.shape[-2] for name, (A, _) in here.items()}
    if needs_one_rank and len(set(ranks.values())) > 1:
        text = ", ".join(f"{r} in {name}" for name, r in ranks.items())
        return [f"{path} has rank {text}; this method needs one rank (cat and svd do not)."]
    return []


def _weigh_updates(
    path: str, adapters: Mapping[str, Adapter], weights: Mapping[str, float]
) -> tuple[Weighted, torch.dtype]:
    """Return weights, scalings and factors of one module, and the dtype of the result."""
    dtype = torch.float32
    updates: Weighted = []
    for name, adapter in adapters.items():
        if path in adapter.factors:
            A, B = adapter.factors[path]
            dtype = torch.promote_types(dtype, torch.promote_types(A.dtype, B.dtype))
            updates.append((weights[name], adapter.config.scaling_for(path), A, B))
    return [(w, s, A.to(dtype), B.to(dtype)) for w, s, A, B in updates], dtype


def _sum_of_updates(updates: Weighted) -> tuple[Tensor, Tensor]:
    """Return (A, B) whose product is the weighted sum of the updates."""
    A = torch.cat([w * s * A for w, s, A, _ in updates], dim=-2)
    return A, torch.cat([B for _, _, _, B in updates], dim=-1)


def _concatenate(updates: Weighted) -> tuple[Tensor, Tensor]:
    A, B = _sum_of_updates(updates)
    side = min(A.shape[-1], B.shape[-2])
    if A.shape[-2] > side and len(updates) > 1:
        return truncate_product(A, B, side)[:2]
    return A, B


def _combine_factors(
    updates: Weighted,
    method: str,
    density: float,
    majority_sign: MajoritySign,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the combined factors; each factor is treated as a task vector, as in PEFT."""
    # Only A gets the sign of a weight; otherwise it would cancel in the product.
    signed = [abs(w * s) ** 0.5 * (1 if w >= 0 else -1) for w, s, _, _ in updates]
    unsigned = [abs(factor) for factor in signed]
    how = (method, density, majority_sign, generator)
    A = _combine_vectors([A for _, _, A, _ in updates], signed, *how)
    return A, _combine_vectors([B for _, _, _, B in updates], unsigned, *how)


def _combine_by_svd(
    updates: Weighted,
    method: str,
    rank: int | None,
    density: float,
    majority_sign: MajoritySign,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    _, _, first_A, first_B = updates[0]
    r = rank or max(A.shape[-2] for _, _, A, _ in updates)
    r = min(r, first_A.shape[-1], first_B.shape[-2])
    if method == "svd":
        A, B = _sum_of_updates(updates)
        return truncate_product(A, B, min(r, A.shape[-2]))[:2]
    deltas = [s * (B @ A) for _, s, A, B in updates]
    how = (method.removesuffix("_svd"), density, majority_sign, generator)
    dense = _combine_vectors(deltas, [w for w, _, _, _ in updates], *how)
    return truncate_dense(dense, r)


def _combine_vectors(
    tensors: list[Tensor],
    weights: list[float],
    method: str,
    density: float,
    majority_sign: MajoritySign,
    generator: torch.Generator,
) -> Tensor:
    """Return the weighted combination of task vectors of one shape."""
    if method.startswith("dare"):
        tensors = [drop_random(tensor, density, generator) for tensor in tensors]
    elif method != "linear":
        tensors = [keep_largest(tensor, density) for tensor in tensors]
    if method.endswith("ties"):
        return elect_signs(tensors, weights, majority_sign)
    return sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
