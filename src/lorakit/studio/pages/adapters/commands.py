"""The commands that the page of adapters runs: the same as on the command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicegui import app, ui

from lorakit.errors import escaped
from lorakit.runs.command import Command
from lorakit.studio.blocks import Text, badge, card, note, problem
from lorakit.studio.context import Studio
from lorakit.studio.live import every

_LOOK_EVERY_S = 0.3
_MOST_SHOWN = 5
_started: dict[Path, list[Command]] = {}
"""The commands of this process by the folder of their studio; a reload finds them here."""


def _forget_all() -> None:
    for commands in _started.values():
        for command in commands:
            command.cancel()


app.on_shutdown(_forget_all)


class CommandsPart:
    """The last commands, with their progress, output and errors."""

    def __init__(self, studio: Studio):
        """Prepare it; `place_here` draws it."""
        self._studio = studio
        self._commands = _started.setdefault(studio.root, [])
        self._shown: object = None
        self._area: ui.element | None = None
        self._at_end: dict[Command, Callable[[], Awaitable[None]]] = {}

    def start(
        self, title: str, words: Sequence[str], at_end: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Start a command.

        Args:
            title: What it does.
            words: The command and its arguments.
            at_end: Called on this page when it has succeeded.

        Raises:
            LorakitError: It cannot be started.
        """
        command = Command(self._studio.root, title, words)
        self._commands.insert(0, command)
        del self._commands[_MOST_SHOWN:]
        if at_end is not None:
            self._at_end[command] = at_end
        self._look()
        if self._area is not None:
            ui.run_javascript(f"getElement({self._area.id}).scrollIntoView({{block: 'nearest'}})")

    def place_here(self) -> None:
        """Draw the commands at this place of the page."""
        self._area = ui.element("div").classes("flex-col gap-4")
        self._area.props('role=status aria-live=polite aria-label="Commands"')
        self._look()
        every(_LOOK_EVERY_S, self._look, is_awaited=self._is_running)

    def _is_running(self) -> bool:
        return any(not command.is_over for command in self._commands)

    def _look(self) -> None:
        now = [(id(e), e.is_over, e.is_cancelled, int(e.seconds)) for e in self._commands]
        if now == self._shown or self._area is None:
            return
        self._shown = now
        self._area.clear()
        with self._area:
            for command in self._commands:
                _draw(command, self._studio)
        for command in [each for each in self._at_end if each.is_over]:
            then = self._at_end.pop(command)
            if command.has_succeeded:
                ui.timer(0, then, once=True)


def _draw(command: Command, studio: Studio) -> None:
    with card(command.title):
        with ui.element("div").classes("scroll").props("tabindex=0"):
            Text("code", command.line)
        if not command.is_over:
            bar = ui.linear_progress(show_value=False).props("indeterminate")
            bar.props["aria-label"] = escaped(command.title)  # names may have quotes
            with ui.element("div").classes("flex-row gap-2"):
                Text("span", f"{command.seconds:.0f} s")
                if command.is_cancelled:
                    note("Cancelling")
                else:
                    ui.button("Cancel", on_click=command.cancel).props("outline dense")
        elif command.problem is not None:
            problem(command.problem)
        else:
            with ui.element("div").classes("flex-row gap-2"):
                badge("finished")
                note(f"in {command.seconds:.0f} s")
            if command.written:
                Text("h3", "Wrote")
                with ui.element("ul"):
                    for name in command.written:
                        Text("li", _short(studio, name)).classes("mono")
            with (
                ui.expansion("What it printed").classes("w-full"),
                ui.element("div").classes("scroll").props("tabindex=0"),
            ):
                Text("pre", command.output, keep="\n\t")


def _short(studio: Studio, name: str) -> str:
    """Return a written file as a path below the folder, where it always is."""
    path = Path(name)
    return studio.relative(path) if path.is_relative_to(studio.root) else name
