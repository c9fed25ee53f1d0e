"""`lorakit combine`: make one adapter from several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.paths import adapter_location
from lorakit.cli.views.console import (
    closing,
    heading,
    merged_name,
    number_text,
    pairs,
    say,
    shell_quote,
    table,
)
from lorakit.errors import ConfigError


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=WEIGHT]",
            help="Runs, adapter directories or hub ids, each with its weight (default 1); "
            "negative weights subtract.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New directory for the combined adapter.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="linear, cat (exact, ranks add up), svd (best approximation of one rank), ties, "
            "dare_linear, dare_ties, magnitude_prune; the last four also with the suffix _svd."
        ),
    ] = "linear",
    density: Annotated[
        float | None,
        typer.Option(help="Share of entries that pruning methods keep (default 0.5)."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the result, for svd (default: largest rank of the adapters)."),
    ] = None,
    majority_sign: Annotated[
        Literal["total", "frequency"],
        typer.Option(help="Sign that TIES elects: of the larger sum, or the more frequent one."),
    ] = "total",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random masks of DARE.")] = 0,
    heads_from: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Adapter whose heads, biases, tokenizer and class names are kept if the adapters "
            "have different heads; one of those given, without its weight.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Base to record, if the adapters name the same base differently."),
    ] = None,
) -> None:
    """Combine adapters of one base into a weighted sum.

    Weights apply to each scaled update, whatever its alpha and rank. The tokenizer and settings of
    the first adapter, or of --heads-from, are saved with the result.
    """
    weights = parse_weights(adapters)
    locations = {name: adapter_location(name) for name in weights}
    from lorakit.adapters import Adapter
    from lorakit.adapters import combine as combined
    from lorakit.adapters.formats.companions import refuse_occupied, write_with_companions
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.adapters.lineage import common_lineage
    from lorakit.adapters.operations.arithmetic import relative_distance

    refuse_occupied(output)
    lineages = {name: InferenceSettings.load(at).lineage for name, at in locations.items()}
    lineage = common_lineage(lineages, base_model)
    loaded = {name: Adapter.load(location) for name, location in locations.items()}
    say(f"Combining {len(loaded)} adapters ...")
    made = combined(
        loaded,
        weights,
        method,  # type: ignore[arg-type]  # `combine` checks it
        density=density,
        rank=rank,
        majority_sign=majority_sign,
        seed=seed,
        heads_from=heads_from,
        base_model=base_model,
    )
    heading("Combined")
    rows = [
        (name, number_text(float(weights[name])), ranks_text(one), len(one.factors))
        for name, one in loaded.items()
    ]
    table(("adapter", "weight", "rank", "modules"), rows)
    distance = relative_distance(made, [(weights[name], one) for name, one in loaded.items()])
    pairs(
        {
            "method": method,
            "rank": ranks_text(made),
            "parameters": f"{made.count_parameters():,}",
            "distance from the exact weighted sum": f"{100 * distance:.3g}% of its norm"
            if distance is not None
            else None,
        }
    )
    files = write_with_companions(
        made, output, locations[heads_from or next(iter(locations))], lineage
    )
    name = shell_quote(output)
    closing(
        files,
        {
            f"lorakit inspect {name}": "shows its contents",
            f"lorakit merge {name} {merged_name(output)}": "writes a plain checkpoint",
        },
    )


def parse_weights(words: list[str]) -> dict[str, float]:
    """Return the weight of each adapter; a weight follows the last "=" of an argument.

    Raises:
        ConfigError: A weight is not a number, or an adapter is named twice.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        if not equals or Path(word).exists():
            name, text = word, "1"
        try:
            weight = float(text)
        except ValueError:
            raise ConfigError(
                f"Cannot read the weight in {word!r}: got {text!r}, expected a number such as "
                f"{name}=0.7. Give a number, or omit it for 1."
            ) from None
        if name in weights:
            raise ConfigError(
                f"{name} is named twice: got weights {weights[name]:g} and {weight:g}, expected "
                "one. Add them up."
            )
        weights[name] = weight
    return weights


def ranks_text(adapter: object) -> str:
    """Return the ranks of an adapter's modules: "8", or "4 to 16"."""
    ranks = {A.shape[0] for A, _ in adapter.factors.values()}  # type: ignore[attr-defined]  # an Adapter, which is not imported here
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
