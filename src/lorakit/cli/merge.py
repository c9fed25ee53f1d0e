"""`lorakit merge`: write an ordinary checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.console import closing, pairs, say
from lorakit.cli.paths import adapter_directory


def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter directory.")
    ],
    output: Annotated[Path, typer.Argument(help="New directory for the checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model to merge into; by default the one the adapter names."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the written weights; by default as the base is saved."),
    ] = None,
) -> None:
    """Write an adapter merged into its base as a checkpoint.

    Plain transformers loads the result with from_pretrained; lorakit is no longer needed.
    """
    directory = adapter_directory(adapter)
    say(f"Merging {directory} ...")
    from lorakit.adapters.merge_checkpoint import merge_to_checkpoint

    report = merge_to_checkpoint(directory, output, base=base, dtype=dtype)
    pairs(
        {
            "largest deviation of a logit": f"{report.largest_deviation:.2e}",
            "relative to the largest logit": f"{report.relative_deviation:.2e}",
        }
    )
    closing(
        report.files,
        {f'AutoModel.from_pretrained("{output}")': "loads it, without lorakit"},
    )
