"""The option --trust-remote-code of commands without a recipe."""

from typing import Annotated

import typer

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow running code that comes with the model; there is no prompt.",
    ),
]
