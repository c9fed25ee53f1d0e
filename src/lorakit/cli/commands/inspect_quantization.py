"""`lorakit inspect --quantization`: the error of quantizing the weights of a base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorakit.cli.paths import CONFIG_NAME, adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import closing, heading, number_text, pairs, say, shell_quote, table

if TYPE_CHECKING:
    from lorakit.quantization.error import LayerError


def inspect_quantization(
    name: str, modules: bool, plot: Path | None, trust_remote_code: bool
) -> None:
    """Print the error of every scheme by layer, and plot it on request.

    Args:
        name: Directory or hub id of a model, or an adapter, whose base is measured.
        modules: Whether to print one line for every layer instead of every kind.
        plot: File for a plot; None draws none.
        trust_remote_code: Whether code that comes with the model may run.
    """
    base = _base_of(name)
    say(f"Quantizing each linear layer of {base} ...")
    from transformers import AutoModel

    from lorakit.models.pretrained import load_model
    from lorakit.quantization.error import quantization_errors

    hide_loading_bars()
    options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": trust_remote_code}
    model = load_model(AutoModel, base, seed=0, has_head=True, key="MODEL", **options)
    errors = list(quantization_errors(model))
    schemes = list(dict.fromkeys(error.scheme for error in errors))
    heading(f"{len({error.path for error in errors})} linear layers")
    table(*_scheme_rows(errors, schemes))
    heading("Relative error ‖W − Ŵ‖ / ‖W‖, Frobenius norms")
    table(*(_module_rows(errors, schemes) if modules else _kind_rows(errors, schemes)))
    pairs({"not measured": "embeddings, norms and the output head, which are not quantized"})
    files = []
    if plot is not None:
        from lorakit.analysis.plots.quantization import plot_quantization_errors

        plot.parent.mkdir(parents=True, exist_ok=True)
        plot_quantization_errors(errors, plot, Path(base).name)
        files.append(plot)
    command = f"lorakit train RECIPE model={shell_quote(base)} 'quantization={{bits: 4}}'"
    closing(files, {command: "trains on it in 4 bits"})


def _base_of(name: str) -> str:
    """Return the named model, or the base of the named adapter."""
    path = Path(name)
    is_model = (path / "config.json").is_file() and not (path / CONFIG_NAME).is_file()
    if is_model or not path.is_dir():
        return name
    from lorakit.adapters import Adapter
    from lorakit.errors import ConfigError

    location = adapter_location(name)
    base = Adapter.load(location).base_model
    if base is None:
        raise ConfigError(
            f"No base model in {location}: got null in base_model_name_or_path. Name the model."
        )
    return base


def _scheme_rows(
    errors: Sequence[LayerError], schemes: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for each scheme over all layers."""
    rows = []
    for scheme in schemes:
        of_scheme = [error for error in errors if error.scheme == scheme]
        sizes = [error.out_features * error.in_features for error in of_scheme]
        total = sum(sizes)
        bits = sum(e.bits_per_parameter * n for e, n in zip(of_scheme, sizes, strict=True)) / total
        relative = [error.relative for error in of_scheme]
        worst = max(of_scheme, key=lambda error: error.relative)
        rows.append(
            (
                scheme,
                f"{bits:.2f}",
                f"{fmean(relative):.4f}",
                f"{worst.relative:.4f}",
                number_text(max(error.largest for error in of_scheme)),
                worst.path,
            )
        )
    headings = (
        "scheme",
        "bits per parameter",
        "mean error",
        "worst error",
        "largest difference",
        "worst in",
    )
    return headings, rows


def _module_rows(
    errors: Sequence[LayerError], schemes: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    by_layer: dict[str, dict[str, LayerError]] = {}
    for error in errors:
        by_layer.setdefault(error.path, {})[error.scheme] = error
    rows = [
        (
            path,
            *(f"{of_layer[s].relative:.4f}" if s in of_layer else "-" for s in schemes),
            *(number_text(of_layer[s].largest) if s in of_layer else "-" for s in schemes),
        )
        for path, of_layer in by_layer.items()
    ]
    return ("layer", *schemes, *(f"largest: {scheme}" for scheme in schemes)), rows


def _kind_rows(
    errors: Sequence[LayerError], schemes: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return headings and one row for all layers of the same name and shape."""
    kinds: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    for error in errors:
        key = (error.path.rpartition(".")[2], error.out_features, error.in_features)
        kinds.setdefault(key, {}).setdefault(error.scheme, []).append(error.relative)
    rows = []
    for (last, out_features, in_features), of_kind in kinds.items():
        count = max(len(values) for values in of_kind.values())
        means = (f"{fmean(of_kind[s]):.4f}" if s in of_kind else "-" for s in schemes)
        rows.append((last, count, in_features, out_features, *means))
    return ("layers", "count", "in", "out", *schemes), rows
