"""The `lorakit` command: its subcommands, exit codes and error messages.

Each command imports heavy libraries only when it runs.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lorakit import __version__
from lorakit.cli.commands.analyze import analyze
from lorakit.cli.commands.blame import blame
from lorakit.cli.commands.chat import chat
from lorakit.cli.commands.combine import combine
from lorakit.cli.commands.convert import convert
from lorakit.cli.commands.evaluate import evaluate
from lorakit.cli.commands.export import export
from lorakit.cli.commands.extract import extract
from lorakit.cli.commands.generate import generate
from lorakit.cli.commands.init import init
from lorakit.cli.commands.inspect import inspect
from lorakit.cli.commands.merge import merge
from lorakit.cli.commands.plan import plan
from lorakit.cli.commands.predict import predict
from lorakit.cli.commands.quickstart import quickstart
from lorakit.cli.commands.serve import serve
from lorakit.cli.commands.studio import studio
from lorakit.cli.commands.study import study
from lorakit.cli.commands.train import train
from lorakit.cli.commands.tune import tune
from lorakit.cli.commands.verify import verify
from lorakit.cli.launched import should_print_error
from lorakit.cli.quiet import quiet_libraries
from lorakit.cli.signals import ending
from lorakit.cli.views.console import complain
from lorakit.errors import LorakitError
from lorakit.files.disks import disk_error
from lorakit.libraries.torch_environment import limit_spinning


class CommandLine(TyperGroup):
    """Group of all commands; turns every error into one message and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command and raise `SystemExit` with its exit code."""
        if not _has_working_directory():
            complain("Error: The current directory has been deleted. Change to another one.")
            sys.exit(2)
        words = list(sys.argv[1:] if args is None else args)
        debug, words = take_debug(words)
        try:
            code = super().main(
                args=["--debug", *words] if debug else words,
                prog_name=prog_name or "lorakit",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            code = code if isinstance(code, int) else 0
        except BrokenPipeError:  # the reader, such as `head`, has ended
            sys.stderr.close()
            code = 1
        except Exception as error:
            code = explain(error, debug)
        sys.exit(code)

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the command; print one line also where no handler takes Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain(ending.reason())
            raise typer.Exit(ending.exit_code()) from None


def _has_working_directory() -> bool:
    """Return whether the current directory exists, without which torch cannot be loaded."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def take_debug(words: list[str]) -> tuple[bool, list[str]]:
    """Remove `--debug` from the arguments before a bare `--`; return whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return len(kept) < end, kept + words[end:]


def explain(error: Exception, debug: bool) -> int:
    """Print an error as the user should see it.

    Args:
        error: Exception that a command raised.
        debug: Whether to print the traceback before the message.

    Returns:
        The exit code: 2 for a mistake in what the user wrote, 1 for a failure while running.
    """
    if isinstance(error, typer.TyperException):
        complain(f"Error: {error.format_message().strip()}")
        context = getattr(error, "ctx", None)
        complain(f"'{context.command_path if context else 'lorakit'} --help' shows the usage.")
        return error.exit_code
    if isinstance(error, typer.Abort):
        complain("Error: the input ended early.")
        return 1
    error = disk_error(error, Path.cwd()) or error
    if not should_print_error(error):
        return error.exit_code if isinstance(error, LorakitError) else 1
    if debug:
        complain("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, LorakitError):
        complain(f"Error: {error}")
        return error.exit_code
    text = " ".join(str(error).split())
    complain(f"Error: {type(error).__name__}{': ' if text else ''}{text}")
    if not debug:
        complain("This is unexpected. Run again with --debug for the traceback.")
    return 1


app = typer.Typer(
    cls=CommandLine,
    name="lorakit",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def lorakit(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version of lorakit and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show tracebacks and the output of libraries; valid for every command."
        ),
    ] = False,
) -> None:
    """Fine-tune Hugging Face models with LoRA, from one recipe file.

    Start with `lorakit quickstart` (no network needed), or write a recipe with `lorakit init`.
    """
    if show_version:
        typer.echo(f"lorakit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    if not debug:
        context.with_resource(quiet_libraries())


COMMANDS = (
    *(quickstart, init, plan, train, tune, study),
    *(evaluate, predict, blame, generate, chat, serve, studio, merge, inspect, verify, analyze),
    *(combine, extract, convert, export),
)
for command in COMMANDS:
    app.command(help=(getdoc(command) or "").partition("\n\nRaises:")[0])(command)


def open_closed_streams() -> None:
    """Open the null device for stdin, stdout or stderr that a parent process has closed.

    A file that is opened later would otherwise take the number of the closed one, and what
    libraries print there would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def main() -> None:
    """Run the command line."""
    open_closed_streams()
    limit_spinning()
    ending.install()
    app()
