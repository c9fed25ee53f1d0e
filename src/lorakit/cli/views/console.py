"""Print headings, tables, sizes, written files and next commands.

On a terminal, tables fit its width; elsewhere (a pipe, a file) they take the width they need, so
that nothing is cut off.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lorakit.cli.paths import path_beside
from lorakit.errors import escaped
from lorakit.files.disks import size_text

_is_silenced = False

PAGE_WIDTH = 80
SECONDS_PER_MINUTE = 60


def console(*, stderr: bool = False) -> Console:
    """Return a console on the current stdout (or stderr) that prints text verbatim."""
    quiet = _is_silenced and not stderr
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, quiet=quiet)


def silence_stdout() -> None:
    """Stop printing to stdout, because another process of the same command prints."""
    global _is_silenced
    _is_silenced = True


def say(text: str = "", style: str | None = None, *, stderr: bool = False) -> None:
    """Print one line; the terminal wraps long ones, so that they can be copied.

    Control characters are escaped.
    """
    console(stderr=stderr).print(escaped(text, keep="\n\t"), style=style, soft_wrap=True)


def remark(text: str) -> None:
    """Print a line on stderr, so that stdout holds the result alone."""
    say(text, style="dim", stderr=True)


def complain(text: str) -> None:
    """Print an error on stderr, unwrapped; on a terminal its first word is red."""
    message = Text(escaped(text, keep="\n\t"))
    if text.startswith("Error:"):
        message.stylize("bold red", 0, len("Error:"))
    console(stderr=True).print(message, soft_wrap=True)


def heading(text: str, *, stderr: bool = False) -> None:
    """Print the heading of a section, after an empty line."""
    say(stderr=stderr)
    say(text, style="bold", stderr=stderr)


def pairs(values: Mapping[str, Any]) -> None:
    """Print names and values in two columns; a value may have several lines.

    Args:
        values: Values by name; None is omitted.
    """
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        if value is not None:
            text = str(value).replace("\n", "\n" + " " * (width + 4))
            say(f"  {name:<{width}}  {text}")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, max_width: int | None = None
) -> None:
    """Print a table; columns of numbers are right-aligned.

    Args:
        columns: Column headings.
        rows: One value per column; None is printed as an empty cell.
        max_width: Width at which cells are folded where no terminal sets one; None does not fold.
    """
    cells = [
        ["" if cell is None else escaped(str(cell), keep="\n") for cell in row] for row in rows
    ]
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        right = bool(cells) and all(looks_numeric(row[number]) for row in cells)
        grid.add_column(escaped(name), justify="right" if right else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    screen = console()
    if screen.is_terminal:
        screen.print(grid)
        return
    options = screen.options.update(width=10_000)
    needed = max(Measurement.get(screen, options, grid).maximum, 1)
    screen.width = needed if max_width is None else min(needed, max_width)
    with screen.capture() as capture:
        screen.print(grid)
    for line in capture.get().splitlines():
        say(line.rstrip())


def looks_numeric(cell: str) -> bool:
    """Return whether a cell starts like a number, or is empty.

    >>> [looks_numeric(cell) for cell in ("1,024", "-0.5", "4.2 MB", "layers.0", "")]
    [True, True, True, False, True]
    """
    return cell[:1].isdigit() or cell[:1] == "" or (cell[0] in "-+." and cell[1:2].isdigit())


def closing(written: Sequence[str | Path], next_commands: Mapping[str, str]) -> None:
    """Print the files a command wrote, and the next commands.

    Args:
        written: Paths; the size of existing ones is printed.
        next_commands: Purpose by command.
    """
    if written:
        heading("Wrote")
        for item in written:
            path = Path(item)
            size = f"  ({size_text(size_of(path))})" if path.exists() else ""
            say(f"  {path}{'/' if path.is_dir() else ''}{size}")
    next_steps(next_commands)


def next_steps(commands: Mapping[str, str], *, stderr: bool = False) -> None:
    """Print the next commands, the purpose beside each or, where that is too wide, above it.

    Args:
        commands: Purpose by command.
        stderr: Whether to print to stderr, because stdout holds the result.
    """
    if not commands:
        return
    heading("Next", stderr=stderr)
    width = max(len(command) for command in commands)
    fits = all(width + len(purpose) + 6 <= PAGE_WIDTH for purpose in commands.values())
    for command, purpose in commands.items():
        if fits:
            say(f"  {command:<{width}}  # {purpose}", stderr=stderr)
        else:
            say(f"  # {purpose}", style="dim", stderr=stderr)
            say(f"  {command}", stderr=stderr)


def shell_quote(path: str | Path) -> str:
    """Return a path quoted for a shell."""
    return shlex.quote(str(path))


def merged_name(adapter: str | Path) -> str:
    """Return a name for the merged checkpoint of an adapter or a run, quoted for a shell.

    >>> merged_name("runs/a/")
    'runs/a-merged'
    """
    return shell_quote(path_beside(adapter, "-merged"))


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def duration_text(duration_s: float) -> str:
    """Return a duration in its two largest units.

    >>> [duration_text(s) for s in (0.42, 42, 125, 7_260)]
    ['0.4 s', '42 s', '2 min 05 s', '2 h 01 min']
    """
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, SECONDS_PER_MINUTE)
    if minutes < SECONDS_PER_MINUTE:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, SECONDS_PER_MINUTE)
    return f"{hours} h {minutes:02d} min"


def number_text(value: Any) -> str:
    """Return a number for a table: integers with commas, floats with four significant digits.

    >>> [number_text(n) for n in (739586, 0.84615384, 0.0002, 12.0, True)]
    ['739,586', '0.8462', '0.0002', '12', 'true']
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"
