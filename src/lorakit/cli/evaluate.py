"""`lorakit evaluate`: measure a trained adapter."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    adapter: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter directory.")
    ],
) -> None:
    """Measure an adapter on validation data."""
