"""`lorakit inspect`: the contents of an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.commands.inspect_quantization import inspect_quantization
from lorakit.cli.paths import adapter_location, require_place_of_file
from lorakit.cli.shared_arguments import TrustRemoteCode
from lorakit.cli.views.console import (
    closing,
    heading,
    merged_name,
    number_text,
    pairs,
    say,
    shell_quote,
    size_text,
    table,
)
from lorakit.errors import first_few

if TYPE_CHECKING:
    from lorakit.adapters import Adapter

_LONG_LIST = 8
FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Update:
    """One adapted module, measured.

    Attributes:
        path: Path of the module in the base.
        in_features: Columns of the update.
        out_features: Rows of the update.
        r: Rank.
        scaling: Factor s.
        norm: Frobenius norm of s B A.
        effective_rank: exp(entropy) of the singular values.
        is_zero: Whether all entries of B (or of A) are zero.
    """

    path: str
    in_features: int
    out_features: int
    r: int
    scaling: float
    norm: float
    effective_rank: float
    is_zero: bool

    @property
    def kind(self) -> tuple[str, int, int, int, float]:
        """What the modules in one row of the table have in common."""
        last = self.path.rsplit(".", 1)[-1]
        return (last, self.in_features, self.out_features, self.r, self.scaling)


def inspect(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="A run, an adapter directory, or a hub id; with --quantization also a model.",
        ),
    ],
    modules: Annotated[
        bool, typer.Option("--modules", help="Print one line for every module.")
    ] = False,
    quantization: Annotated[
        bool,
        typer.Option(
            "--quantization",
            help="Show the error of quantizing the weights of the base to 4 and 8 bits.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for a plot of effective ranks and norms by layer; with --quantization, "
            "of its errors."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what an adapter contains, or how well its base quantizes."""
    if plot is not None:
        require_place_of_file(plot, "the plot")
    if quantization:
        inspect_quantization(adapter, modules, plot, trust_remote_code)
        return
    location = adapter_location(adapter)
    from lorakit.adapters import Adapter
    from lorakit.analysis import what_is_left_out

    loaded = Adapter.load(location)
    updates = [measure(loaded, path) for path in loaded.factors]
    say(f"Adapter {location}")
    pairs(summary(loaded, location))
    heading(f"{len(updates)} adapted modules")
    table(*(module_rows(updates) if modules else kind_rows(updates)))
    left_out = what_is_left_out(loaded)
    if left_out:
        say(left_out)
    if len(updates) > 1 and not modules and any(update.norm for update in updates):
        largest = largest_updates(updates)
        heading(f"The {len(largest)} largest updates")
        table(*largest_rows(largest, updates))
    if loaded.replaced:
        heading("Trained in full")
        rows = [
            (name, " x ".join(map(str, tensor.shape)) or "1", number_text(tensor.numel()))
            for name, tensor in loaded.replaced.items()
        ]
        table(("weight", "shape", "parameters"), rows)
    if loaded.trained_tokens:
        heading("Trained tokens")
        rows = [
            (path, len(tensor), tensor.shape[1], number_text(tensor.numel()))
            for path, tensor in loaded.trained_tokens.items()
        ]
        table(("weight", "tokens", "dim", "parameters"), rows)
    lineage = lineage_rows(location)
    if lineage:
        heading("Lineage")
        table(("what", "name", "sha256"), lineage)
    for warning in (*rewritten_base_warnings(loaded), *warnings(updates)):
        say(f"\nWarning: {warning}", style="yellow")
    name = shell_quote(adapter)
    closing(
        [] if plot is None else [draw(loaded, plot, name=adapter)],
        {
            f'lorakit generate {name} "..."': "tries it on a text",
            f"lorakit merge {name} {merged_name(adapter)}": "writes a plain checkpoint",
        },
    )


def lineage_rows(location: str | Path) -> list[tuple[str, str, str]]:
    """Return what an adapter was made from, its data first, then each parent with its data."""
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.adapters.lineage import DataSource

    lineage = InferenceSettings.load(location).lineage
    if lineage is None:
        return []

    def of_data(sources: Iterable[DataSource]) -> list[tuple[str, str, str]]:
        return [("  data", source.name, source.sha256 or "not recorded") for source in sources]

    rows = [("this adapter", "", ""), *of_data(lineage.data)]
    if lineage.base_digest is not None:
        rows.append(("  base", "digest of its weights", lineage.base_digest))
    for parent in lineage.parents:
        rows += [("trained on from", parent.name, parent.sha256), *of_data(parent.data)]
    return rows


def draw(adapter: Adapter, plot: Path, name: str) -> Path:
    """Plot effective rank and norm of every update by kind and layer.

    Raises:
        AdapterFileError: The factors are not finite.
    """
    from lorakit.analysis import AdapterAnalysis, update_svds
    from lorakit.analysis.plots.spectra import plot_layers

    svds = tuple(update_svds(adapter))
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot_layers(AdapterAnalysis(name, adapter, 0.9, svds, ()), plot)
    return plot


def summary(adapter: Adapter, location: str | Path) -> dict[str, Any]:
    """Return facts about the whole adapter by name."""
    factors = [tensor for pair in adapter.factors.values() for tensor in pair]
    factors += adapter.companions.values()
    lora_count = sum(tensor.numel() for tensor in factors)
    full_count = sum(tensor.numel() for tensor in adapter.replaced.values())
    token_count = sum(tensor.numel() for tensor in adapter.trained_tokens.values())
    shares = [f"{lora_count:,} LoRA"]
    shares += [f"{full_count:,} in full"] if full_count else []
    shares += [f"{token_count:,} of tokens"] if token_count else []
    sizes = [path.stat().st_size for name in FILES if (path := Path(location) / name).is_file()]
    values = adapter.config.model_dump(mode="json", exclude_defaults=True, exclude={"task_type"})
    return {
        "base model": adapter.base_model or "not recorded",
        "task": adapter.config.task_type or "not recorded",
        "parameters": f"{lora_count + full_count + token_count:,}"
        + (f" ({', '.join(shares)})" if len(shares) > 1 else ""),
        "size on disk": size_text(sum(sizes)) if sizes else None,
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in factors})),
        "settings": "\n".join(f"{key}: {setting_text(value)}" for key, value in values.items())
        or "all at their defaults",
    }


def setting_text(value: Any) -> str:
    """Return a setting as in a recipe; a long list of numbers is abbreviated."""
    if not isinstance(value, list):
        return str(value)
    is_long = len(value) > _LONG_LIST and isinstance(value[0], int)
    items = [*value[:_LONG_LIST], f"… {len(value)} in total"] if is_long else value
    return f"[{', '.join(map(str, items))}]"


def rewritten_base_warnings(adapter: Adapter) -> tuple[str, ...]:
    """Warn if the numbers are not those of the update, because PEFT changes the base with it."""
    from lorakit.initialization import initialization_of

    initialization = adapter.config.init_lora_weights
    if not initialization_of(initialization).changes_base_in_peft:
        return ()
    return (
        f"init_lora_weights={initialization}: part of the base is in the factors, so "
        "these numbers do not describe the change. Load the adapter into its base and save it "
        "again.",
    )


def measure(adapter: Adapter, path: str) -> Update:
    """Measure the update of one module, without multiplying it out."""
    from lorakit.analysis import effective_rank
    from lorakit.ops.factored_svd import product_singular_values

    a, b = adapter.factors[path]
    scaling = adapter.config.scaling_for(path)
    # Each expert of stacked weights has its own spectrum.
    values = product_singular_values(a, b, scaling)
    spectra = values.reshape(-1, values.shape[-1])
    return Update(
        path=path,
        in_features=a.shape[-1],
        out_features=b.shape[-2],
        r=a.shape[-2],
        scaling=scaling,
        norm=values.norm().item(),
        effective_rank=fmean(effective_rank(one) for one in spectra),
        is_zero=not (a.any() and b.any()),
    )


def module_rows(updates: Iterable[Update]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for each module."""
    rows = [
        (
            *(u.path, u.in_features, u.out_features, u.r, number_text(u.scaling)),
            *(number_text(u.norm), rank_text([u])),
        )
        for u in updates
    ]
    return ("module", "in", "out", "r", "scaling", "norm of update", "effective rank"), rows


def kind_rows(updates: Iterable[Update]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for all modules of the same name, shape, rank and scaling."""
    kinds: dict[tuple[str, int, int, int, float], list[Update]] = {}
    for update in updates:
        kinds.setdefault(update.kind, []).append(update)
    rows = []
    for (last, in_features, out_features, r, scaling), alike in kinds.items():
        norms = [update.norm for update in alike]
        sizes = (in_features, out_features, r, number_text(scaling))
        spread = (min(norms), fmean(norms), max(norms))
        rows.append((last, len(norms), *sizes, *map(number_text, spread), rank_text(alike)))
    headings = ("modules", "count", "in", "out", "r", "scaling", "norm: min", "mean", "max")
    return (*headings, "effective rank"), rows


def rank_text(updates: Sequence[Update]) -> str:
    """Return the mean effective rank of updates with one decimal."""
    return f"{fmean(update.effective_rank for update in updates):.1f}"


def largest_updates(updates: Sequence[Update], most: int = 5) -> list[Update]:
    """Return the updates of the largest norms, in descending order."""
    trained = [update for update in updates if update.norm]
    return sorted(trained, key=lambda update: -update.norm)[:most]


def largest_rows(
    largest: Sequence[Update], updates: Sequence[Update]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for each of the largest updates."""
    whole = sum(update.norm**2 for update in updates)
    rows = [
        (u.path, number_text(u.norm), f"{100 * u.norm**2 / whole:.1f}%", rank_text([u]))
        for u in largest
    ]
    return ("module", "norm", "of Σ‖ΔW‖²", "effective rank"), rows


def warnings(updates: list[Update]) -> list[str]:
    """Return warnings about an adapter that seems untrained."""
    found = []
    zero = [update.path for update in updates if update.is_zero]
    if updates and len(zero) == len(updates):
        found.append(
            "lora_B is zero in every module: this adapter was never trained and changes nothing."
        )
    elif zero:
        found.append(
            f"the update is zero in {len(zero)} of {len(updates)} modules, which never learned: "
            f"{first_few(zero)}."
        )
    return found
