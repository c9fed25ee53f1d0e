"""Text and tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from lorakit.analysis.adapter_analysis import AdapterAnalysis, pooled_norm
from lorakit.analysis.adapter_comparison import AdapterComparison
from lorakit.analysis.layer_similarity import TOP_DIRECTIONS
from lorakit.analysis.spectrum import UpdateSvd, rank_for, what_is_left_out
from lorakit.errors import first_few

_PATHS_SHOWN = 5


def adapter_sections(
    analysis: AdapterAnalysis, pictures: dict[str, str], level: str, note: str | None
) -> list[str]:
    """Return the sections about one adapter as Markdown.

    Args:
        analysis: Analysis of the adapter.
        pictures: File names by subject: "energy", "spectra", "layers", "amplification", and
            "similarity 256" for each input width.
        level: Level of the headings, "##" or "###".
        note: Why there are no amplification factors, if there are none.
    """
    sections = [
        _what_it_is(analysis),
        f"{level} How low could the rank have been?",
        *_rank_section(analysis, pictures["energy"]),
        f"{level} Spectra",
        *_spectrum_section(analysis, pictures),
    ]
    if analysis.layer_similarities:
        sections += [f"{level} Do modules share directions?", *_layers_section(analysis, pictures)]
    sections.append(f"{level} Does it amplify what the base already has?")
    if analysis.amplifications:
        sections += _amplification_section(analysis, pictures["amplification"])
    else:
        sections.append(f"The amplification factor is left out: {note or 'no base was given.'}")
    return sections


def comparison_sections(comparison: AdapterComparison, pictures: dict[str, str]) -> list[str]:
    """Return the sections about two adapters as Markdown."""
    first, second = comparison.first.name, comparison.second.name
    left_out = (
        f"Left out, because only one of the two changes them: {_some(comparison.left_out)}."
        if comparison.left_out
        else ""
    )
    return [
        "## Do the two use the same directions?",
        f"φ(i, j) = ‖X_iᵀ Y_j‖_F² / min(i, j) is the share of the smaller of two subspaces that is "
        f"inside the larger: X_i is spanned by the first i singular directions of ΔW in {first}, "
        f"Y_j by the first j in {second}. 1 is all of it, 0 is nothing. Random subspaces of n "
        "dimensions have max(i, j) / n on average, so φ is significant only as far as it is "
        "above that. Input directions are what an update reads, output directions what it writes.",
        f"![Subspace similarity of {first} and {second}]({pictures['similarity']})",
        table(
            (
                *("modules", "count", "φ(1, 1) input", "φ(1, r) input", "random"),
                *("φ(1, r) output", "random", "φ(r, r) input", "random", "φ(1, r) of A alone"),
            ),
            _similarity_rows(comparison),
        ),
        f"Means over the layers. φ(1, 1) compares the two top directions; φ(1, r) is the share of "
        f"the top direction of {first} inside all directions of {second}; φ(r, r) compares all "
        "with all. *A alone* takes the singular directions of lora_A without lora_B, as figures 3 "
        "and 4 of the LoRA paper do: it spans the same subspace, but its order also depends on "
        "the initialization of A.",
        f"![The top direction by layer]({pictures['similarity by layer']})",
        left_out,
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = [_row(header), "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *map(_row, rows)])


def number(value: float) -> str:
    """Return a number with three significant digits.

    >>> [number(n) for n in (0.123456, 12.3456, 1234.5, 0.0)]
    ['0.123', '12.3', '1230', '0']
    """
    return f"{float(f'{value:.3g}'):g}" if abs(value) < 1e6 else f"{value:.3g}"


def recommendation(analysis: AdapterAnalysis) -> str:
    """Return a sentence on which rank to try next."""
    choice = analysis.rank_choice()
    r = analysis.largest_r
    share = percent(choice.share)
    if choice.together >= r:
        return (
            f"No lower rank keeps {share} of the energy of {analysis.name}: the trained {r} is "
            "fully used, and a higher one may be worth a try."
        )
    return (
        f"Rank {choice.together} keeps {percent(choice.kept_together)} of the energy of "
        f"{analysis.name} and is the smallest rank that keeps {share}; the adapter was trained "
        f"with {r}: {choice.parameters_together:,} parameters instead of {analysis.parameters:,}. "
        "Try it next."
    )


def percent(share: float) -> str:
    """Return a share as a percentage.

    >>> percent(0.9), percent(0.995)
    ('90%', '99.5%')
    """
    return f"{100 * share:.4g}%"


def _what_it_is(analysis: AdapterAnalysis) -> str:
    base = analysis.adapter.base_model
    text = (
        f"{len(analysis.updates)} updates ΔW = s·B·A"
        + (f" for `{base}`" if base else "")
        + f", {analysis.parameters:,} parameters. {recommendation(analysis)}"
    )
    left_out = what_is_left_out(analysis.adapter)
    text += f" {left_out}" if left_out else ""
    if analysis.zero_paths:
        text += (
            f" The update is zero in {len(analysis.zero_paths)} modules, which never learned: "
            f"{_some(analysis.zero_paths)}."
        )
    return text


def _rank_section(analysis: AdapterAnalysis, picture: str) -> list[str]:
    rows = []
    for share in analysis.shares():
        choice = analysis.rank_choice(share)
        ranks = [rank for rank in choice.per_module.values() if rank]
        rows.append(
            (
                percent(share),
                choice.together,
                percent(choice.kept_together),
                f"{choice.parameters_together:,}",
                choice.everywhere,
                f"{choice.parameters_everywhere:,}",
                f"{min(ranks)} to {max(ranks)}",
                f"{choice.parameters_per_module:,}",
            )
        )
    choice = analysis.rank_choice()
    kept = {
        update.path: update.energy_kept()[min(choice.together, update.r)].item()
        for update in analysis.updates
        if not update.is_zero
    }
    worst = min(kept, key=kept.__getitem__)
    header = ("energy to keep", "one rank for all", "it keeps", "parameters")
    per_module = ("each module keeps it", "parameters", "rank per module", "parameters")
    return [
        f"![Energy against rank]({picture})",
        table((*header, *per_module), rows),
        "The energy of an update is ‖ΔW‖_F², the sum of its squared singular values; cutting it to "
        "rank k keeps the k largest, and no other matrix of rank k is closer (Eckart and "
        "Young). *One rank for all* keeps the share of the total energy, where large updates "
        "count more; *each module keeps it* is the smallest rank at which every module keeps the "
        "share of its energy; *rank per module* gives each module the rank it needs "
        "(`rank_pattern`; the ranks are in `layers.csv`).",
        f"At rank {choice.together} the module that keeps least is `{worst}` with "
        f"{percent(kept[worst])}. Energy is not accuracy: a small direction may matter, and "
        "training with a lower rank may find other directions. So train and measure the rank "
        "before you rely on it.",
    ]


def _spectrum_section(analysis: AdapterAnalysis, pictures: dict[str, str]) -> list[str]:
    rows = [_kind_row(analysis, kind, updates) for kind, updates in analysis.kinds.items()]
    shares = [f"rank for {percent(share)}" for share in analysis.shares()]
    return [
        f"![Singular values of every update]({pictures['spectra']})",
        table(("modules", "count", "r", "‖ΔW‖", "effective rank", "stable rank", *shares), rows),
        "‖ΔW‖ is the Frobenius norm, over all layers together (√Σ‖ΔW‖²); ranks are means over the "
        "layers, and *rank for* a share is that of the kind's modules together. The effective rank "
        "is exp of the entropy of σ_i / Σσ (Roy and Vetterli 2007): it counts the directions in "
        "use, small ones partially. The stable rank ‖ΔW‖_F² / ‖ΔW‖_2² is the equivalent number "
        "of directions as strong as the strongest. A steep spectrum with a low effective rank does "
        "not need its rank; a flat one uses all of it.",
        f"![Effective rank and norm by layer]({pictures['layers']})",
        "Modules that are bright in the lower picture changed most; one that is dark in both is "
        "the first to try with a smaller rank, or without an update.",
    ]


def _kind_row(analysis: AdapterAnalysis, kind: str, updates: list[UpdateSvd]) -> tuple[Any, ...]:
    trained = [update for update in updates if not update.is_zero]
    spectra = [update.singular_values for update in updates]
    ranks = sorted({update.r for update in updates})
    return (
        kind,
        len(updates),
        ", ".join(map(str, ranks)),
        number(pooled_norm(updates)),
        number(_mean([update.effective_rank for update in trained])) if trained else "zero",
        number(_mean([update.stable_rank for update in trained])) if trained else "zero",
        *(rank_for(spectra, share) for share in analysis.shares()),
    )


def _layers_section(analysis: AdapterAnalysis, pictures: dict[str, str]) -> list[str]:
    rows = []
    images = []
    for found in analysis.layer_similarities:
        one, other, largest = found.closest()
        pair = f"`{one}` and `{other}`"
        mean, random = number(found.mean), number(found.random_mean)
        rows.append((found.in_features, len(found.paths), mean, random, number(largest), pair))
        images.append(
            f"![φ between modules that read {found.in_features} features]"
            f"({pictures[f'similarity {found.in_features}']})"
        )
    header = ("input width", "modules", "mean φ", "random", "largest φ", "between")
    return [
        f"φ of the top {TOP_DIRECTIONS} input directions (fewer where the rank is lower) of every "
        "two modules that have the same input width, compared with the same number of random "
        "directions. Bright pairs of modules read the same features; if all are at the level of "
        "the random control, each module reads different features.",
        *images,
        table(header, rows),
    ]


def _amplification_section(analysis: AdapterAnalysis, picture: str) -> list[str]:
    kinds = analysis.by_kind(analysis.amplifications)
    rows = [
        (
            kind,
            len(group),
            *(
                number(median(getattr(found, name) for found in group))
                for name in (
                    *("directions", "base_norm", "update_norm"),
                    *("along_base", "along_update", "along_random", "factor"),
                )
            ),
        )
        for kind, group in kinds.items()
    ]
    header = ("modules", "count", "r", "‖W0‖", "‖ΔW‖", "along W0", "along ΔW", "random", "factor")
    ratio = median(
        found.along_update / found.along_random
        for found in analysis.amplifications
        if found.along_random
    )
    return [
        f"![Amplification factors]({picture})",
        table(header, rows),
        "Medians over the layers. With U and V the r top singular directions of ΔW, ‖Uᵀ W0 V‖_F is "
        "what the base has along them, and ‖ΔW‖_F / ‖Uᵀ W0 V‖_F is the amplification factor: by "
        "how much the update amplifies them (LoRA paper, section 7.3, table 7). The controls "
        "are the top directions of W0, the maximum for r directions, and random "
        "directions.",
        f"Along the directions of the update, the base has {number(ratio)} times what it has along "
        f"random ones (median of all modules). {_reading(ratio)}",
    ]


def _reading(ratio: float) -> str:
    if ratio < 1.5:
        return "That is hardly more: the update adds directions that the base does not emphasise."
    return "So the update amplifies directions that the base emphasises more than random ones."


def _similarity_rows(comparison: AdapterComparison) -> list[tuple[Any, ...]]:
    return [
        (
            kind,
            len(group),
            *(
                number(_mean([getattr(module, phi)[place].item() for module in group]))
                for phi, place in (
                    *(("inputs", (0, 0)), ("inputs", (0, -1)), ("expected_inputs", (0, -1))),
                    *(("outputs", (0, -1)), ("expected_outputs", (0, -1))),
                    *(("inputs", (-1, -1)), ("expected_inputs", (-1, -1))),
                    ("factor_A", (0, -1)),
                )
            ),
        )
        for kind, group in comparison.first.by_kind(comparison.modules).items()
    ]


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _some(paths: Sequence[str]) -> str:
    return first_few((f"`{path}`" for path in paths), _PATHS_SHOWN)
