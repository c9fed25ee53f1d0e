"""Compare the directions of the updates of two adapters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.analysis.adapter_analysis import AdapterAnalysis
from lorakit.analysis.spectrum import UpdateSvd
from lorakit.analysis.subspace import (
    expected_similarity,
    factor_directions,
    random_similarity,
    similarity,
)
from lorakit.errors import AdapterMismatchError, first_few


@dataclass(frozen=True, eq=False)
class ModuleSimilarity:
    """φ(i, j) of one module between two adapters.

    Attributes:
        path: Path of the module in the base.
        in_features: Columns of ΔW.
        out_features: Rows of ΔW.
        inputs: φ of the right-singular vectors of ΔW, (r1, r2) in float64; r1 and r2 are the
            ranks of the two updates.
        outputs: φ of the left-singular vectors.
        factor_A: φ of the right-singular vectors of lora_A alone, as in the paper, (r1, r2) for
            the trained ranks.
        random_inputs: φ of Gaussian matrices instead of the input directions, (r1, r2).
        random_outputs: φ of Gaussian matrices instead of the output directions, (r1, r2).
    """

    path: str
    in_features: int
    out_features: int
    inputs: Tensor
    outputs: Tensor
    factor_A: Tensor
    random_inputs: Tensor
    random_outputs: Tensor

    @property
    def expected_inputs(self) -> Tensor:
        """Mean of `inputs` for random directions."""
        return expected_similarity(self.in_features, *self.inputs.shape)

    @property
    def expected_outputs(self) -> Tensor:
        """Mean of `outputs` for random directions."""
        return expected_similarity(self.out_features, *self.outputs.shape)


@dataclass(frozen=True, eq=False)
class AdapterComparison:
    """φ between two adapters.

    Attributes:
        first: First adapter.
        second: Second adapter.
        modules: Modules that both adapt, in the order of the first.
        left_out: Modules that only one adapts, or whose update is zero in one.
    """

    first: AdapterAnalysis
    second: AdapterAnalysis
    modules: tuple[ModuleSimilarity, ...]
    left_out: tuple[str, ...]


def compare_adapters(
    first: AdapterAnalysis, second: AdapterAnalysis, *, seed: int = 0
) -> AdapterComparison:
    """Compare the directions of two adapters of one base, module by module.

    The ranks may differ, also between modules. Both adapters must be trained on the same base:
    only then do their inputs and outputs mean the same.

    Args:
        first: Result of `analyze_adapter`.
        second: Result of `analyze_adapter`.
        seed: Seed of the random control.

    Raises:
        AdapterMismatchError: They share no module, or the widths of a shared module differ.

    Source: Hu et al. 2021, arXiv:2106.09685, section 7.2, figures 3 and 4.
    """
    theirs = {update.path: update for update in second.updates}
    common = [(update, theirs[update.path]) for update in first.updates if update.path in theirs]
    if not common:
        raise AdapterMismatchError(
            f"Cannot compare {first.name} with {second.name}: they have no module in common, "
            f"expected updates of the same ones. {first.name} adapts {_some(first)}; "
            f"{second.name} adapts {_some(second)}."
        )
    _require_same_shapes(first, second, common)
    generator = torch.Generator().manual_seed(seed)
    modules = tuple(
        _compare(first, second, mine, other, generator)
        for mine, other in common
        if not (mine.is_zero or other.is_zero)
    )
    if not modules:
        raise AdapterMismatchError(
            f"Cannot compare {first.name} with {second.name}: in each module that both adapt, such "
            f"as {common[0][0].path}, one of the updates is zero; expected both to be trained."
        )
    done = {module.path for module in modules}
    paths = dict.fromkeys(update.path for update in (*first.updates, *second.updates))
    return AdapterComparison(first, second, modules, tuple(p for p in paths if p not in done))


def _compare(
    first: AdapterAnalysis,
    second: AdapterAnalysis,
    mine: UpdateSvd,
    other: UpdateSvd,
    generator: torch.Generator,
) -> ModuleSimilarity:
    r1, r2 = mine.rank, other.rank
    factors = [analysis.adapter.factors[mine.path][0] for analysis in (first, second)]
    return ModuleSimilarity(
        path=mine.path,
        in_features=mine.in_features,
        out_features=mine.out_features,
        inputs=similarity(mine.right[:r1].T, other.right[:r2].T),
        outputs=similarity(mine.left[:, :r1], other.left[:, :r2]),
        factor_A=similarity(*map(factor_directions, factors)),
        random_inputs=random_similarity(mine.in_features, r1, r2, generator),
        random_outputs=random_similarity(mine.out_features, r1, r2, generator),
    )


def _require_same_shapes(
    first: AdapterAnalysis,
    second: AdapterAnalysis,
    common: list[tuple[UpdateSvd, UpdateSvd]],
) -> None:
    different = [
        f"{mine.path} is {_shape(mine)} in {first.name} and {_shape(other)} in {second.name}"
        for mine, other in common
        if _shape(mine) != _shape(other)
    ]
    if different:
        raise AdapterMismatchError(
            f"Cannot compare adapters of different bases: ΔW of {first_few(different, 1)}, "
            "expected the same shape. Name two adapters that were trained on one base."
        )


def _shape(update: UpdateSvd) -> tuple[int, int]:
    return update.out_features, update.in_features


def _some(analysis: AdapterAnalysis) -> str:
    return first_few(update.path for update in analysis.updates)
