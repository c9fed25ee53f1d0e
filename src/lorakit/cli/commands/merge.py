"""`lorakit merge`: merge an adapter into its base as a plain checkpoint."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.paths import adapter_location
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import TrustRemoteCode
from lorakit.cli.views.console import closing, pairs, say


def merge(
    adapter: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_ADAPTER", help="A run, an adapter directory, or a hub id."),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="New directory for the checkpoint.")
    ],
    base_model: Annotated[
        str | None,
        typer.Option(help="Base model to merge into; by default the one recorded in the adapter."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Dtype of the written weights; by default that of the saved base, for a "
            "quantized one that of its products."
        ),
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize", help="Quantize the merged weights as the base was in training."
        ),
    ] = False,
    unquantized: Annotated[
        bool,
        typer.Option(
            "--unquantized", help="Merge into the base as saved, although training quantized it."
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge an adapter into its base and write a plain checkpoint.

    transformers loads the result with from_pretrained, without lorakit. A base that was quantized
    in training is dequantized first, so that only rounding is lost.
    """
    location = adapter_location(adapter)
    say(f"Merging {location} ...")
    from lorakit.inference.merge_checkpoint import merge_to_checkpoint

    hide_loading_bars()
    report = merge_to_checkpoint(
        location,
        output,
        base=base_model,
        dtype=dtype,
        requantize=requantize,
        unquantized=unquantized,
        trust_remote_code=trust_remote_code,
    )
    if report.note is not None:
        say(report.note)
    base_note = "dequantized" if report.was_quantized else None
    if report.requantized:
        base_note = "quantized again; the two figures below include the error"
    pairs(
        {
            "merged layers": report.layers,
            "dtype": report.dtype,
            "quantized base": base_note,
            "largest deviation of a logit": f"{report.largest_deviation:.2e}, which is "
            f"{report.relative_deviation:.1e} of the largest logit",
            "largest rounding of a weight": f"{report.largest_rounding:.2e}",
        }
    )
    if report.not_written is not None:
        say(report.not_written)
    closing(report.files, {loading_line(output): "loads it in Python, without lorakit"})


def loading_line(checkpoint: Path) -> str:
    """Return a line of Python that loads a checkpoint with transformers."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return f"transformers.{config['architectures'][0]}.from_pretrained({str(checkpoint)!r})"
