"""`lorakit chat`: talk to an adapter in the terminal, in this process or on a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import (
    ApiKeyFile,
    SamplingSeed,
    Temperature,
    TopP,
    TrustRemoteCode,
    Unquantized,
    refuse_unused_top_p,
)
from lorakit.cli.signals import ending
from lorakit.cli.views.console import complain, remark
from lorakit.errors import ConfigError, DataError, LorakitError

if TYPE_CHECKING:
    from lorakit.cli.chatting.session import Session
    from lorakit.serving.clients.talking import TalkingModels

PROMPT = "> "


def chat(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|URL", help="A run, an adapter or a base; or the address of a server."
        ),
    ],
    base: Annotated[
        bool, typer.Option("--base", help="Show the base alone beside the adapter.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model of the server; by default its only adapter, or the base."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of an answer.")
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    seed: SamplingSeed = 42,
    api_key_file: ApiKeyFile = None,
    unquantized: Unquantized = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to an adapter, with the base beside it if you like.

    Without a terminal, each line of stdin is answered. /help in a chat shows its commands.

    Raises:
        ConfigError: Options do not go together, or there is no such model.
    """
    refuse_unused_top_p(top_p, temperature)
    from lorakit.cli.chatting.conversation import Conversation
    from lorakit.cli.chatting.session import Session
    from lorakit.serving.clients.event_loop import LoopThread
    from lorakit.serving.clients.talking import AnswerOptions

    options = AnswerOptions(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed)
    with closing(LoopThread()) as loop:
        models = open_models(
            target, api_key_file, unquantized=unquantized, trust_remote_code=trust_remote_code
        )
        try:
            session = Session(models, loop, options, Conversation(system), ())
            session.listed = loop.run(models.list_models())
            session.shows_base = base
            session.choose(adapter)
            talk(session)
        finally:
            loop.run(models.close())


def open_models(
    target: str, api_key_file: Path | None, *, unquantized: bool, trust_remote_code: bool
) -> TalkingModels:
    """Connect to a server, or load a run.

    Raises:
        ConfigError: Options do not fit the target.
        LorakitError: The run or its base cannot be used.
    """
    from lorakit.serving.clients.over_http import RemoteModels, is_url

    if is_url(target):
        if unquantized or trust_remote_code:
            name = "--unquantized" if unquantized else "--trust-remote-code"
            raise ConfigError(
                f"{name} is for a model that is loaded here: got {target}, expected a run. Give it "
                "to `lorakit serve`."
            )
        from lorakit.serving.http.keys import API_KEY_VARIABLE, collect_keys

        keys = collect_keys([], api_key_file, API_KEY_VARIABLE)
        return RemoteModels(target, keys[0] if keys else None)
    if api_key_file is not None:
        raise ConfigError(
            f"--api-key-file is for a server: got {target}, expected an address such as "
            "http://localhost:8000. Leave it out."
        )
    from lorakit.serving.clients.in_process import InProcessModels

    hide_loading_bars()
    remark(f"Loading {target} ...")
    return InProcessModels(target, unquantized=unquantized, trust_remote_code=trust_remote_code)


def talk(session: Session) -> None:
    """Answer lines until they end: typed ones, or those of stdin if that is not a terminal.

    Raises:
        DataError: stdin has no line.
        LorakitError: A line of stdin cannot be answered.
    """
    if sys.stdin.isatty():
        talk_in_terminal(session)
        return
    remark(f"Talking to {session.name}.")
    has_text = False
    for line in read_lines():
        has_text = has_text or bool(line.strip())
        if not session.take(line):
            return
    if not has_text:
        raise DataError("No text in stdin: got no line with text, expected one per line.")


def talk_in_terminal(session: Session) -> None:
    """Answer typed lines; an error or Ctrl-C ends an answer, not the chat."""
    complete_commands(session)
    lists = "/adapter lists the other models, " if len(session.listed) > 1 else ""
    remark(f"Talking to {session.name}. {lists}/help shows the commands, Ctrl-D ends.")
    goes_on = True
    with ending.repeating_interrupt():
        while goes_on:
            line = None
            try:
                line = read_typed_line()
                goes_on = line is not None and session.take(line)
            except KeyboardInterrupt:
                remark("" if line is None else "Stopped: this question and its answer are dropped.")
            except LorakitError as error:
                complain(f"Error: {error}")


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin.

    Raises:
        DataError: They are not UTF-8.
    """
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def read_typed_line() -> str | None:
    """Return the line that is typed after the prompt; None at the end of the input.

    Raises:
        DataError: It is not UTF-8.
    """
    prompt = PROMPT
    if not sys.stdout.isatty():  # stdout holds the answers alone
        sys.stderr.write(PROMPT)
        sys.stderr.flush()
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        remark("")
        return None
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _not_utf8(error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"Cannot read stdin: byte {error.start} is not UTF-8. Write the texts in UTF-8."
    )


def complete_commands(session: Session) -> None:
    """Let the terminal recall earlier lines, and complete commands and names with Tab."""
    try:
        import readline
    except ImportError:  # Windows has its own recall
        return
    from lorakit.cli.chatting.session import COMMANDS

    def complete(text: str, state: int) -> str | None:
        line = readline.get_line_buffer()
        names = [each.name for each in session.listed] if line.startswith("/adapter ") else []
        words = names or (COMMANDS if text == line else ())
        matches = [f"{word} " for word in words if text and word.startswith(text)]
        return matches[state] if state < len(matches) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
