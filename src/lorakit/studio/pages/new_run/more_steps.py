"""Train a run on: with more epochs or steps, as `lorakit train --resume` does, or in a new run."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import ui

from lorakit.errors import LorakitError
from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs.command import command_line, train_command
from lorakit.runs.queue import RunQueue
from lorakit.studio.blocks import Text, card, copyable, note
from lorakit.studio.context import Studio
from lorakit.studio.frame import show_error

_DEFAULT_EPOCHS = 3


async def draw(studio: Studio, relative: str) -> None:
    """Show how far a run was to go, and ask how far it shall go."""
    directory = RunDirectory.open(studio.path(relative))
    training = (await asyncio.to_thread(directory.recipe)).training
    _MoreSteps(studio, relative, training, is_finished=directory.is_finished).draw()


class _MoreSteps:
    def __init__(
        self, studio: Studio, relative: str, training: dict[str, Any], *, is_finished: bool
    ):
        self.studio, self.relative, self.is_finished = studio, relative, is_finished
        by_steps = int(training.get("max_steps", -1)) > 0
        self.key = "training.max_steps" if by_steps else "training.num_train_epochs"
        self.before = training.get(self.key.partition(".")[2], _DEFAULT_EPOCHS)
        self.wanted = 2 * self.before if is_finished else self.before

    def draw(self) -> None:
        unit = "optimizer steps" if self.key.endswith("max_steps") else "epochs"
        with card(self.relative):
            how = "has trained" if self.is_finished else "was to train, and is not finished,"
            note(f"This run {how} for {_text(self.before)} {unit}.")
            self.number = ui.number(
                f"Train to so many {unit} in all ({self.key})",
                value=self.wanted,
                min=0,
                on_change=lambda event: self.change(event.value),
            )
            self.number.props("dense outlined stack-label debounce=300").classes(
                "walk-number-input"
            )
            Text("h3", "The same from a terminal")
            self.command = ui.element("div")
            self.problem = ui.element("div").classes("walk-slot")
            with ui.element("div").classes("flex-row gap-2"):
                self.start = ui.button("Train on", on_click=self.begin).props("unelevated no-caps")
            note(
                "Base, data and every other setting stay as they are; the learning rate follows "
                "the schedule of the longer run."
            )
        with card("Other data or settings"):
            note(
                "A new run may begin with this adapter instead (start_from), or with a new one; "
                "this run stays as it is."
            )
            with ui.element("div").classes("flex-row gap-2"):
                ways = {"A new run like this one": "from"}
                if self.is_finished:
                    ways = {"A new run from its adapter": "start"} | ways
                for name, key in ways.items():
                    link = ui.link(name, f"/new?{urlencode({key: self.relative})}")
                    link.classes("button button-quiet")
        self._draw_command()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The change of the recipe, if there is one."""
        return () if self.wanted == self.before else (f"{self.key}={_text(self.wanted)}",)

    @property
    def words(self) -> tuple[str, ...]:
        """The command."""
        recipe = f"{self.relative}/recipe.yaml"
        return train_command(recipe, self.overrides, resume=True)

    def change(self, number: float | None) -> None:
        """Take another number of epochs or steps."""
        self.wanted = number or 0
        self._draw_command()

    def _draw_command(self) -> None:
        self.command.clear()
        with self.command:
            copyable(command_line(self.studio.root, self.words), "the command")
        self.problem.clear()
        is_more = self.wanted > self.before or (self.wanted == self.before and not self.is_finished)
        if not is_more:
            with self.problem:
                note(f"Choose more than {_text(self.before)}.")
        self.start.set_enabled(is_more)

    async def begin(self) -> None:
        """Put the command into the queue and show the run."""
        self.start.set_enabled(False)
        queue = RunQueue(self.studio.root)
        try:
            await asyncio.to_thread(queue.add, self.words[1:], self.relative, is_new=False)
        except LorakitError as error:
            self.problem.clear()
            with self.problem:
                show_error(error)
            self.start.set_enabled(True)
            return
        ui.navigate.to(f"/run/{quote(self.relative)}")


def _text(number: float) -> str:
    """Return a number of epochs or steps with all its digits.

    >>> _text(2.5), _text(2.0), _text(1_250_000)
    ('2.5', '2', '1250000')
    """
    return str(int(number) if number == int(number) else number)
