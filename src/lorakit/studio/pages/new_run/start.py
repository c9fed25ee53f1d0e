"""Step 5: the name of the run, the command line that starts it, and starting it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from lorakit.errors import LorakitError
from lorakit.files.atomic import write_text
from lorakit.files.disks import reporting_disk_errors
from lorakit.quickstart.model_files import base_name
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs.command import command_line, train_command
from lorakit.runs.drafts import delete_draft
from lorakit.runs.jobs import Job
from lorakit.runs.new_recipe import recipe_path
from lorakit.runs.queue import RunQueue
from lorakit.studio.blocks import Text, card, copyable, facts, note
from lorakit.studio.frame import show_error
from lorakit.studio.pages.new_run.state import Walk, show_problems
from lorakit.studio.telling import telling


async def draw(walk: Walk) -> None:
    """Draw the step."""
    _StartStep(walk).draw()


class _StartStep:
    def __init__(self, walk: Walk):
        self.walk = walk

    @property
    def recipe(self) -> str:
        """Path of the file that the recipe will be, relative to the folder of the studio."""
        return recipe_path(self.walk.root, str(self.walk.value("output") or ""))

    def draw(self) -> None:
        with ui.element("div").classes("walk-columns"):
            with card("Start", "walk-tall"):
                self.name = ui.input(
                    "Run directory (output)",
                    value=str(self.walk.value("output") or ""),
                    on_change=lambda event: self.rename(event.value),
                )
                self.name.props("dense outlined debounce=300")
                self.problem = ui.element("div").classes("walk-slot")
                Text("h3", "The same from a terminal")
                self.command = ui.element("div")
                note("The studio writes the recipe to that file, and runs this command.")
                with ui.element("div").classes("flex-row gap-2"):
                    self.start = ui.button("Start training", on_click=self.begin)
                    self.start.props("unelevated no-caps")
                note(
                    "Runs go one at a time: if another is training, this one waits in the queue. "
                    "It goes on when this page, or the studio, is closed."
                )
            with card("What it will do", "walk-tall"):
                self._draw_summary()
        self._draw_command()
        self._check()

    def _draw_summary(self) -> None:
        value = self.walk.value
        train = value("data.train")
        about = {
            "Base": base_name(str(value("model"))),
            "Task": value("task"),
            "Objective": value("objective.type"),
            "Data": train if isinstance(train, str) else f"{len(train or ())} sources",
            "Begins with": value("start_from"),
            "Rank": value("lora.r"),
            "Epochs": value("training.num_train_epochs"),
            "Learning rate": value("training.learning_rate"),
        }
        facts(about, "walk-facts")
        note("When it has finished, its page has a report, and the playground can try it.")

    def _draw_command(self) -> None:
        self.command.clear()
        with self.command:
            copyable(command_line(self.walk.root, train_command(self.recipe)), "the command")

    @telling
    async def rename(self, output: str | None) -> None:
        """Train into another directory."""
        output = (output or "").strip()
        if output != self.walk.value("output"):
            await self.walk.set_values({"output": output})
        self._draw_command()
        self._check()

    def _check(self) -> None:
        """Show what would keep the run from starting."""
        self.problem.clear()
        checked = self.walk.checked
        with self.problem:
            try:
                if checked.recipe is None:
                    show_problems(checked.problems)
                else:
                    RunQueue(self.walk.root).require_inside(checked.recipe.output)
                    RunDirectory.refuse_occupied(self.walk.root / checked.recipe.output)
                    self.start.set_enabled(True)
                    return
            except LorakitError as error:
                show_error(error)
        self.start.set_enabled(False)

    async def begin(self) -> None:
        """Write the recipe and put the run into the queue; show its page."""
        walk = self.walk
        await walk.wait_until_checked()
        recipe = walk.checked.recipe
        if recipe is None:
            return
        self.start.set_enabled(False)
        try:
            job = await asyncio.to_thread(_enqueue, walk.root, self.recipe, walk.draft.text, recipe)
        except LorakitError as error:
            self.start.set_enabled(True)
            self.problem.clear()
            with self.problem:
                show_error(error)
            return
        await asyncio.to_thread(delete_draft, walk.root, walk.draft.id)
        ui.navigate.to(f"/run/{quote(job.output)}")


def _enqueue(root: Path, path: str, text: str, recipe: Recipe) -> Job:
    """Write the recipe to its file, and put the command that trains it into the queue."""
    file = root / path
    queue = RunQueue(root)
    queue.require_inside(recipe.output)
    RunDirectory.refuse_occupied(root / recipe.output)
    with reporting_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    about = {"task": str(recipe.task), "model": recipe.model}
    return queue.add(train_command(path)[1:], recipe.output, about=about)
