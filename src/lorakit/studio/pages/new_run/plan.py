"""Step 4: the memory of a training step, whether it fits, and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from nicegui import background_tasks, ui

from lorakit.files.disks import size_text
from lorakit.recipes.yaml_text import to_one_line
from lorakit.runs.memory_answer import MemoryAnswer, Remedy, memory_of
from lorakit.studio.blocks import Text, card, facts, note
from lorakit.studio.pages.new_run.state import Walk, show_problems
from lorakit.studio.telling import telling

_FEW_UPDATES = 100
_MOST_EPOCHS = 30


async def draw(walk: Walk) -> None:
    """Draw the step."""
    step = _PlanStep(walk)
    step.draw()
    background_tasks.create(step.compute())


class _PlanStep:
    def __init__(self, walk: Walk):
        self.walk = walk
        self.applied = ""

    def draw(self) -> None:
        with ui.element("div").classes("walk-columns"):
            with card("Memory at the peak of a step", "walk-tall"):
                self.progress = ui.element("div").classes("walk-slot")
                self.memory = ui.element("div").classes("walk-memory")
            with card("The run", "walk-tall"):
                self.facts = ui.element("div")
                self.remedies = ui.element("div").classes("walk-remedies")

    async def compute(self, *, remedies: bool = False) -> None:
        """Plan the recipe and show the result."""
        walk = self.walk
        for place in (self.memory, self.facts, self.remedies):
            place.clear()
        if walk.checked.recipe is None:
            with self.memory:
                show_problems(walk.checked.problems)
            return
        answer = await walk.ask(
            *(self.progress, "Planning on fake tensors", memory_of, walk.checked.recipe),
            remedies=remedies,
        )
        if answer is None or not walk.is_at("plan"):
            return
        with self.memory:
            self._draw_memory(answer)
        with self.facts:
            _draw_facts(answer)
            self._draw_longer(answer)
        with self.remedies:
            self._draw_remedies(answer, remedies)

    def _draw_memory(self, answer: MemoryAnswer) -> None:
        verdict = Text("p", answer.verdict).classes("walk-verdict").props("role=status")
        verdict.classes("walk-fits" if answer.fits else "walk-does-not-fit")
        if answer.memory_bytes:
            share = min(answer.needed_bytes / answer.memory_bytes, 1)
            with ui.element("div").classes("walk-gauge").props("aria-hidden=true"):
                ui.element("div").style(f"width: {share:.1%}")
        largest = max(answer.by_purpose.values(), default=1)
        with ui.element("table").classes("walk-purposes"):
            for purpose, size in answer.by_purpose.items():
                with ui.element("tr"):
                    Text("th", purpose).props("scope=row")
                    Text("td", size_text(size)).classes("number")
                    with ui.element("td").classes("walk-bar").props("aria-hidden=true"):
                        ui.element("div").style(f"width: {max(size / largest, 0.004):.1%}")

    def _draw_longer(self, answer: MemoryAnswer) -> None:
        """Offer more epochs for a run whose steps are too few to learn much."""
        epochs = self.walk.value("training.num_train_epochs") or 3
        updates = answer.updates
        if not updates or updates >= _FEW_UPDATES or self.walk.value("training.max_steps"):
            return
        enough = min(math.ceil(epochs * _FEW_UPDATES / updates), _MOST_EPOCHS)
        if not isinstance(epochs, (int, float)) or enough <= epochs:
            return
        with ui.element("div").classes("walk-remedy"):
            with ui.element("div").classes("grow"):
                Text("p", f"Only {updates:,} optimizer steps").classes("font-semibold")
                note(f"A new adapter often needs {_FEW_UPDATES} or more to learn anything.")
            longer = {"training.num_train_epochs": enough}
            button = ui.button(f"Train {enough} epochs", on_click=lambda: self.change(longer))
            button.props("outline no-caps")

    def _draw_remedies(self, answer: MemoryAnswer, were_asked: bool) -> None:
        if not answer.remedies and not were_asked and answer.fits is not False:
            button = ui.button(
                "What would save memory?", on_click=lambda: self.compute(remedies=True)
            )
            button.props("outline no-caps")
            return
        Text("h2", "What would save memory")
        if not answer.remedies:
            note("No change that lorakit knows. Choose a smaller model.")
        for remedy in answer.remedies:
            self._draw_remedy(remedy)

    def _draw_remedy(self, remedy: Remedy) -> None:
        with ui.element("div").classes("walk-remedy"):
            with ui.element("div").classes("grow"):
                Text("p", remedy.name).classes("font-semibold")
                saved, needed = size_text(remedy.saves_bytes), size_text(remedy.needed_bytes)
                fits = (
                    "" if remedy.fits is None else "; fits" if remedy.fits else "; too much still"
                )
                Text("p", f"saves {saved}, then needs {needed}{fits}").classes("note text-sm")
            button = ui.button("Apply", on_click=partial(self.apply, remedy))
            button.props(f'outline no-caps aria-label="Apply: {remedy.name}"')

    async def apply(self, remedy: Remedy) -> None:
        """Write a remedy into the recipe and plan again."""
        await self.change(remedy.values)

    @telling
    async def change(self, values: Mapping[str, Any]) -> None:
        """Change the recipe and plan again."""
        await self.walk.set_values(values)
        changes = ", ".join(f"{key}: {to_one_line(value)}" for key, value in values.items())
        ui.notify(f"Now in the recipe: {changes}", type="positive")
        await self.compute()


def _draw_facts(answer: MemoryAnswer) -> None:
    about = {
        "Device": answer.device,
        "Trained": f"{answer.trainable:,} of {answer.total:,} parameters",
        "Adapter file": size_text(answer.adapter_file_bytes),
        "Batch": f"{answer.batch_rows} × {answer.batch_tokens} tokens",
        "Optimizer steps": None if answer.updates is None else f"{answer.updates:,}",
        "Tokens": None if answer.tokens is None else f"{answer.tokens:,}",
    }
    facts(about, "walk-facts")
    for sentence in answer.notes:
        note(sentence)
