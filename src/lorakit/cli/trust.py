"""The option of commands without a recipe that lets code which comes with a model run."""

from typing import Annotated

import typer

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let code that comes with the model run; it is never asked for on the terminal.",
    ),
]
