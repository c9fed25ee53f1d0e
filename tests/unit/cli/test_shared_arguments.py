"""Arguments and options that several commands take."""

import pytest
import typer
from typer.testing import CliRunner

from lorakit.cli.shared_arguments import Overrides, RecipeFile, TrustRemoteCode, bytes_of
from lorakit.errors import ConfigError

line = typer.Typer()


@line.command()
def show(recipe: RecipeFile, overrides: Overrides = None, trust: TrustRemoteCode = False) -> None:
    typer.echo(f"{recipe.name} {overrides} {trust}")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["a/b.yaml"], "b.yaml None False"),
        (["b.yaml", "lora.r=4", "x=1", "--trust-remote-code"], "b.yaml ['lora.r=4', 'x=1'] True"),
    ],
)
def test_the_recipe_comes_first_and_code_is_trusted_only_when_asked(words, shown):
    assert CliRunner().invoke(line, words).output == f"{shown}\n"


@pytest.mark.parametrize("words", [[], ["b.yaml", "--no-trust-remote-code"]])
def test_a_missing_recipe_and_another_form_of_the_option_are_refused(words):
    assert CliRunner().invoke(line, words).exit_code == 2


@pytest.mark.parametrize(("text", "size"), [("1GiB", 2**30), ("2.5 MB", 2_500_000), ("0", 0)])
def test_sizes_have_units(text, size):
    assert bytes_of(text, "--kv-memory") == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1 PB", "1e9", "GB"])
def test_what_is_no_size_is_refused_with_the_option(text):
    with pytest.raises(ConfigError, match="--kv-memory is not a size: got"):
        bytes_of(text, "--kv-memory")
