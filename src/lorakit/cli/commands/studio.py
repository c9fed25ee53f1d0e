"""`lorakit studio`: the web page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.signals import ending
from lorakit.cli.views.console import remark, say, shell_quote
from lorakit.errors import ConfigError, DiskError


def studio(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with runs; new ones are created in it.",
            show_default=False,
        ),
    ] = Path(),
    host: Annotated[
        str,
        typer.Option(help="Interface to listen at; 0.0.0.0 for all, which needs a password."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes the next free one.")
    ] = 8800,
    password_file: Annotated[
        Path | None,
        typer.Option(help="File whose first line is the password that opens the page."),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the link; do not open a browser.")
    ] = False,
) -> None:
    """Open a web page to train, watch, compare and try adapters.

    Runs go on when the page, or this command, ends.

    Raises:
        ConfigError: An option is wrong, or the port is taken.
    """
    from lorakit.libraries.extras import require_package

    require_package("fastapi", "The studio", "studio")
    require_package("nicegui", "The studio")
    from lorakit.serving.http.threaded_server import is_loopback
    from lorakit.studio.access import Access, load_key, read_password
    from lorakit.studio.app import build_app
    from lorakit.studio.context import Studio
    from lorakit.studio.server import StudioServer, bind

    root = require_folder(folder)
    password = None if password_file is None else read_password(password_file)
    if password is None and not is_loopback(host):
        raise ConfigError(
            f"Anybody could open this studio: got host {host} and no password, expected one for a "
            "page that other machines can reach. Add --password-file."
        )
    listening = bind(host, port)
    access = Access(
        load_key(root),
        f"lorakit-studio-{listening.getsockname()[1]}",
        password,
        on_link_used=lambda token: remark(f"For another browser: {link(server.url, token)}"),
    )
    server = StudioServer(build_app(Studio(root, access.api_key), access), listening).start()
    address = server.url if access.needs_password else link(server.url, access.token)
    with server, ending.raising_interrupt():
        try:
            say(f"The studio shows {root}")
            say(f"  {address}")
            remark("Ctrl-C ends the page; runs go on.")
            if not no_browser:
                webbrowser.open(address)
            server.wait()
        except KeyboardInterrupt:
            pass
    remark(f"{ending.reason()} Open it again with: lorakit studio {shell_quote(folder)}")
    raise typer.Exit(ending.exit_code())


def link(url: str, token: str) -> str:
    """Return the address that admits one browser."""
    return f"{url}/access?token={token}"


def require_folder(folder: Path) -> Path:
    """Return the absolute path of a folder that exists and can be written to.

    Raises:
        ConfigError: It is not there, is a file, or is not writable.
    """
    from lorakit.files.disks import reporting_disk_errors
    from lorakit.runs.paths import STATE_FOLDER

    if not folder.is_dir():
        what, step = "it is a file", "Name a folder."
        if not folder.exists():
            what = "there is no such directory"
            step = f"Create it with `mkdir {shell_quote(folder)}`, or name another."
        raise ConfigError(
            f"Cannot open a studio in {folder}: {what}, expected a folder with runs. {step}"
        )
    root = folder.resolve()
    if not str(root).isprintable():
        raise ConfigError(
            f"Cannot open a studio in {str(root)!r}: its path has control characters, expected "
            "one without. Rename it."
        )
    state = root / STATE_FOLDER
    try:
        with reporting_disk_errors(state):
            state.mkdir(mode=0o700, exist_ok=True)
    except DiskError as error:  # the user has named the folder
        raise ConfigError(str(error)) from None
    return root
