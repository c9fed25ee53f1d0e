"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as lora.r=16."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow running code that comes with the model; there is no prompt.",
    ),
]
"""For commands without a recipe; in a recipe it is a key."""

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the API key of the server; by default the variable LORAKIT_API_KEY."
    ),
]
