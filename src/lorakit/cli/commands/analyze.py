"""`lorakit analyze`: what an adapter has learned, in numbers and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.paths import adapter_location, run_of
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import TrustRemoteCode
from lorakit.cli.views.console import (
    closing,
    heading,
    number_text,
    pairs,
    remark,
    say,
    shell_quote,
    table,
)
from lorakit.errors import ConfigError, LorakitError

if TYPE_CHECKING:
    from lorakit.adapters import Adapter
    from lorakit.analysis import AdapterAnalysis, AdapterComparison

_NAME_LENGTH = 28
_MOST_KINDS = 20


def analyze(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER",
            help="A run, an adapter directory, or a hub id; a second one is compared with it.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="New directory; by default `analysis` in the (first) run, or, for an adapter "
            "outside of a run, its name with the suffix -analysis.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model; by default the one recorded in the adapter."),
    ] = None,
    no_base: Annotated[
        bool,
        typer.Option("--no-base", help="Do not load the base; skips amplification factors."),
    ] = False,
    energy: Annotated[
        float, typer.Option(help="Share of ‖ΔW‖² that the recommended rank keeps.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random controls.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show how much of its rank an adapter uses, and for what.

    Writes a report with pictures: spectra, how low the rank could have been, which modules share
    directions, and whether the updates amplify what the base already has. Two adapters (of
    different ranks, seeds or data) are compared direction by direction.
    """
    if len(adapters) > 2:
        raise ConfigError(
            f"Cannot analyse {len(adapters)} adapters: expected one, or two to compare. "
            "Run the command once for each pair."
        )
    if base is not None and no_base:
        raise ConfigError("--base and --no-base exclude each other. Give one of them.")
    locations = [adapter_location(name) for name in adapters]
    folder = output or default_output(locations)
    names = short_names(adapters, locations)
    for name in adapters:
        say(f"Reading {name} ...")
    from lorakit.adapters import Adapter
    from lorakit.analysis import analyze_adapter, compare_adapters, write_report
    from lorakit.analysis.report import refuse_occupied

    refuse_occupied(folder)
    loaded = [Adapter.load(location) for location in locations]
    if base is None:
        require_one_base(loaded, adapters)
    analyses = [
        analyze_adapter(adapter, name=name, energy=energy, seed=seed)
        for adapter, name in zip(loaded, names, strict=True)
    ]
    compared = len(analyses) == 2
    comparison = compare_adapters(*analyses, seed=seed) if compared else None
    note = "the base was not loaded (--no-base)."
    if not no_base:
        analyses, note = with_base(analyses, locations, base, seed, trust_remote_code)
    if comparison is not None:
        comparison = replace(comparison, first=analyses[0], second=analyses[1])
    files = write_report(folder, analyses[0], comparison, base_note=note)
    for analysis in analyses:
        show_analysis(analysis)
    if comparison is not None:
        show_comparison(comparison)
    closing(files, next_commands(adapters, locations, analyses[0]))


def default_output(locations: list[str | Path]) -> Path:
    """Return the directory of a report: in the first adapter's run, or beside the adapter.

    Args:
        locations: Locations of one or two adapters; a hub id counts as a name in the current
            directory.
    """
    first = Path(locations[0])
    versus = f"-{label(locations[1])}" if len(locations) == 2 else ""
    run = run_of(first)
    if run is not None and first.name == "adapter":
        return run / f"analysis{versus}"
    if not first.is_dir():
        return Path(f"{first.name}-analysis{versus}")
    return first.resolve().parent / f"{first.resolve().name}-analysis{versus}"


def label(location: str | Path) -> str:
    """Return the label of an adapter: the name of its run, or of its directory."""
    run = run_of(location)
    path = Path(location)
    labelled = run if run is not None and path.name == "adapter" else path
    return (labelled.resolve() if labelled.is_dir() else labelled).name


def short_names(adapters: list[str], locations: list[str | Path]) -> list[str]:
    """Return short, distinct names for titles and tables."""
    names = [label(location) for location in locations]
    if len(set(names)) < len(names):
        names = [name.rstrip("/").removesuffix("/adapter") for name in adapters]
    names = [name if len(name) <= _NAME_LENGTH else f"…{name[-_NAME_LENGTH:]}" for name in names]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return names


def require_one_base(loaded: list[Adapter], adapters: list[str]) -> None:
    """Refuse to compare adapters of different bases.

    Raises:
        ConfigError: The bases differ; the message names both.
    """
    bases = [adapter.base_model for adapter in loaded]
    known = {same_base(base) for base in bases if base is not None}
    if len(known) > 1:
        raise ConfigError(
            f"Cannot compare {adapters[0]} with {adapters[1]}: got adapters of the bases "
            f"'{bases[0]}' and '{bases[1]}', expected one base. If they are the same model in two "
            "places, name it with --base."
        )


def same_base(name: str) -> str:
    """Return a base's hub id, or its directory with links resolved."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def with_base(
    analyses: list[AdapterAnalysis],
    locations: list[str | Path],
    base: str | None,
    seed: int,
    trust_remote_code: bool,
) -> tuple[list[AdapterAnalysis], str]:
    """Add amplification factors, or return why there are none.

    Args:
        analyses: Analyses without factors.
        locations: Locations of their adapters.
        base: Base that the user names; None takes those recorded in the adapters.
        seed: Seed of the random control.
        trust_remote_code: Whether code that comes with a base may run.

    Returns: The analyses, and the reason if the base cannot be loaded.

    Raises:
        LorakitError: The base that the user names cannot be loaded, or does not match.
    """
    say(f"Loading {base or analyses[0].adapter.base_model or 'the base'} ...")
    hide_loading_bars()
    try:
        made = [
            with_amplifications(analysis, location, base, seed, trust_remote_code)
            for analysis, location in zip(analyses, locations, strict=True)
        ]
    except LorakitError as error:
        if base is not None:
            raise
        remark(f"No amplification factors, because the base cannot be loaded: {error}")
        return analyses, f"the base cannot be loaded. {error}"
    return made, ""


def with_amplifications(
    analysis: AdapterAnalysis,
    location: str | Path,
    base: str | None,
    seed: int,
    trust_remote_code: bool,
) -> AdapterAnalysis:
    """Return an analysis with amplification factors; the base is released afterwards."""
    from lorakit.analysis import amplifications
    from lorakit.inference.base_weights import load_base_weights

    weights = load_base_weights(location, base, trust_remote_code=trust_remote_code)
    found = amplifications(analysis.updates, weights, seed)
    return replace(analysis, amplifications=tuple(found))


def show_analysis(analysis: AdapterAnalysis) -> None:
    """Print the results of one adapter."""
    from lorakit.analysis import what_is_left_out
    from lorakit.analysis.report_text import recommendation

    heading(f"{analysis.name}: {len(analysis.updates)} updates, {analysis.parameters:,} parameters")
    kinds = list(analysis.kinds.items())
    rows = [kind_row(analysis, kind) for kind, _ in kinds[:_MOST_KINDS]]
    shares = [f"rank for {100 * share:g}%" for share in analysis.shares()]
    columns = ("modules", "count", "r", "effective rank", *shares, "amplification")
    has_factors = bool(analysis.amplifications)
    table(columns if has_factors else columns[:-1], rows)
    if len(kinds) > _MOST_KINDS:
        say(f"  {len(kinds) - _MOST_KINDS} more kinds of modules in the report")
    if analysis.zero_paths:
        say(f"  zero in {len(analysis.zero_paths)} modules, such as {analysis.zero_paths[0]}")
    left_out = what_is_left_out(analysis.adapter)
    if left_out:
        say(left_out)
    say(recommendation(analysis))


def kind_row(analysis: AdapterAnalysis, kind: str) -> tuple[Any, ...]:
    """Return the table row of the modules of one kind."""
    from lorakit.analysis import rank_for

    updates = analysis.kinds[kind]
    spectra = [update.singular_values for update in updates]
    factors = [
        found.factor
        for found in analysis.amplifications
        if analysis.places[found.path].kind == kind
    ]
    row = (
        kind,
        len(updates),
        ", ".join(map(str, sorted({update.r for update in updates}))),
        f"{fmean(update.effective_rank for update in updates):.1f}",
        *(rank_for(spectra, share) for share in analysis.shares()),
    )
    if not analysis.amplifications:
        return row
    return (*row, number_text(median(factors)) if factors else None)


def show_comparison(comparison: AdapterComparison) -> None:
    """Print how much two adapters have in common, over all shared modules."""
    modules = comparison.modules
    heading(f"φ between {comparison.first.name} and {comparison.second.name}")

    def overlap(row: int) -> str:
        found = fmean(m.inputs[row, -1].item() for m in modules)
        random = fmean(m.expected_inputs[row, -1].item() for m in modules)
        return f"{found:.3f} (random: {random:.3f})"

    pairs(
        {
            "top direction in all of the other": overlap(0),
            "all directions": overlap(-1),
            "modules": f"{len(modules)} in both"
            + (f", {len(comparison.left_out)} in one" if comparison.left_out else ""),
        }
    )


def next_commands(
    adapters: list[str], locations: list[str | Path], analysis: AdapterAnalysis
) -> dict[str, str]:
    """Return the next commands after a report."""
    commands = {}
    run = run_of(locations[0])
    rank = analysis.rank_choice().together
    if run is not None and rank < analysis.largest_r:
        recipe, folder = shell_quote(run / "recipe.yaml"), shell_quote(f"{run}-r{rank}")
        command = f"lorakit train {recipe} lora.r={rank} output={folder}"
        commands[command] = "trains again with that rank"
    name = shell_quote(adapters[0])
    if len(adapters) == 1:
        commands[f"lorakit analyze {name} OTHER"] = "compares it with another adapter"
    commands[f"lorakit inspect {name} --modules"] = "shows its contents"
    return commands
