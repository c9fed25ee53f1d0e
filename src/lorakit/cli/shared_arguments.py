"""Arguments and options that several commands take, and sizes in them such as 2GB."""

import re
from pathlib import Path
from typing import Annotated

import typer

from lorakit.errors import ConfigError

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as lora.r=16."),
]
RunOrAdapter = Annotated[
    str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter directory.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow running code that comes with the model; there is no prompt.",
    ),
]
"""For commands without a recipe; in a recipe it is a key."""

BaseModel = Annotated[
    str | None, typer.Option(help="Base model; by default the one recorded in the adapter.")
]
Unquantized = Annotated[
    bool,
    typer.Option("--unquantized", help="Use the base as saved, although training quantized it."),
]

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the API key of the server; by default the variable LORAKIT_API_KEY."
    ),
]

Temperature = Annotated[
    float,
    typer.Option(min=0, help="0 takes the most likely token; above 0, tokens are sampled."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Sample from the most likely tokens with this total probability."
    ),
]
SamplingSeed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")]


def split_recipes(recipe: Path, arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Return the recipes among arguments, and the changes: those with an =.

    >>> split_recipes(Path("a.yaml"), ["b.yaml", "lora.r=4"])[1]
    ['lora.r=4']
    """
    others = [Path(argument) for argument in arguments if "=" not in argument]
    return [recipe, *others], [argument for argument in arguments if "=" in argument]


def require_one_recipe(recipe: Path, arguments: list[str], what: str) -> None:
    """Refuse a second recipe among the changes.

    Args:
        recipe: The recipe.
        arguments: What follows it.
        what: What the command does, for the message.

    Raises:
        ConfigError: One of them is a file.
    """
    second = next((each for each in arguments if "=" not in each and Path(each).is_file()), None)
    if second is not None:
        raise ConfigError(
            f"Cannot {what} {recipe} and {second} in one run: got two recipes, expected one. Add "
            f"--together to {what} several runs on one base at the same time."
        )


def refuse_unused_top_p(top_p: float | None, temperature: float) -> None:
    """Refuse --top-p where no token is sampled.

    Raises:
        ConfigError: The temperature is 0.
    """
    if top_p is not None and temperature == 0:
        raise ConfigError(
            "--top-p requires sampling: got --temperature 0, expected one above 0. "
            "Add --temperature 1, or remove --top-p."
        )


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def bytes_of(text: str, option: str) -> int:
    """Return the number of bytes that an option gives.

    Args:
        text: A number with a unit: B, kB, MB, GB, TB, or KiB, MiB, GiB, TiB.
        option: Name of the option, for the error.

    Raises:
        ConfigError: It is not a size.

    >>> [bytes_of(text, "--kv-memory") for text in ("2GB", "1.5 MiB", "512", "64k")]
    [2000000000, 1572864, 512, 64000]
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"{option} is not a size: got {text!r}, expected a number with a unit such as 512MB or "
            "2GB. Write one."
        )
    number, unit, is_binary = found.groups()
    units = _BINARY_UNITS if is_binary else _UNITS
    return int(float(number) * units[unit.lower()])
