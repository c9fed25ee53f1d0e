"""Exit codes and the form of errors, for every command alike."""

import sys

import pytest
import typer
from typer.testing import CliRunner

from lorakit.cli import main as main_module
from lorakit.cli.main import app, open_closed_streams, take_debug
from lorakit.errors import AdapterStateError, ConfigError

runner = CliRunner()


def failing(error: BaseException) -> typer.Typer:
    """Return the real command line with one more command, which raises `error`."""
    line = typer.Typer(
        cls=main_module.CommandLine, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    line.callback(invoke_without_command=True)(main_module.lorakit)

    @line.command()
    def fail() -> None:
        raise error

    return line


def test_no_command_prints_the_help_and_succeeds():
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    for name in (
        "quickstart",
        "init",
        "train",
        "evaluate",
        "generate",
        "merge",
        "inspect",
        "analyze",
        "combine",
        "extract",
        "convert",
    ):
        assert f"\n  {name}" in result.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("quickstart", "init", "train", "generate", "merge", "inspect", "analyze"),
        *("combine", "extract", "convert"),
    ],
)
def test_the_help_of_a_command_keeps_internals_to_itself(name):
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Raises" not in result.stdout
    assert "Args:" not in result.stdout


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("lorakit ")


def test_unknown_command_is_answered_with_the_nearest():
    result = runner.invoke(app, ["trian"])
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: No such command 'trian'. Did you mean 'train'?\n'lorakit --help' shows the usage.\n"
    )


def test_unknown_option_names_the_commands_help():
    result = runner.invoke(app, ["train", "recipe.yaml", "--resum"])
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: No such option: --resum (Possible options: --address, --resume)\n"
        "'lorakit train --help' shows the usage.\n"
    )


def test_users_mistake_exits_2_with_its_message_alone():
    message = "In recipe.yaml: unknown key 'lora.rank'. " + "long " * 40 + "Did you mean 'r'?"
    result = runner.invoke(failing(ConfigError(message)), ["fail"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {message}\n"


def test_failure_while_running_exits_1():
    result = runner.invoke(failing(AdapterStateError("The model is merged.")), ["fail"])
    assert (result.exit_code, result.stderr) == (1, "Error: The model is merged.\n")


def test_unexpected_error_is_one_line_and_a_hint():
    result = runner.invoke(failing(RuntimeError("two\nlines")), ["fail"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: RuntimeError: two lines\n"
        "This is unexpected. Run again with --debug for the traceback.\n"
    )


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_before_the_message(words):
    result = runner.invoke(failing(ConfigError("No.")), words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("\nError: No.\n")


def test_markup_in_a_message_is_not_eaten():
    message = "No module matched target_modules=['q_porj'] [bold]."
    result = runner.invoke(failing(ConfigError(message)), ["fail"])
    assert message in result.stderr


def test_interrupt_exits_130_with_a_word():
    result = runner.invoke(failing(KeyboardInterrupt()), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_deleted_directory_and_closed_streams(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as ended:
        app(["--version"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: The current directory has been deleted.")
    monkeypatch.setattr(sys, "stdin", None)
    open_closed_streams()
    with sys.stdin:
        assert not sys.stdin.isatty() and sys.stdin.read() == ""


def test_debug_is_taken_from_anywhere_before_a_bare_double_dash():
    assert take_debug(["train", "--debug", "x"]) == (True, ["train", "x"])
    assert take_debug(["generate", "--", "--debug"]) == (False, ["generate", "--", "--debug"])
