"""What the five steps share: the draft, which is a recipe's text, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from nicegui import ui

from lorakit.errors import OutputExistsError, Problem
from lorakit.recipes.yaml_edits import UNSET, with_values
from lorakit.runs.drafts import STEPS, Draft, Step, newer_draft, save_draft
from lorakit.runs.recipe_form import check_text
from lorakit.runs.warm_process import Computation
from lorakit.studio.blocks import Text
from lorakit.studio.long_action import LongAction, Progress
from lorakit.studio.telling import telling

T = TypeVar("T")

TITLES: Mapping[Step, str] = {
    "base": "Base",
    "data": "Data",
    "method": "Method",
    "plan": "Plan",
    "start": "Start",
}

_WHERE = "the recipe"
"""Name of the draft in messages."""


class Walk:
    """One draft on one page.

    Attributes:
        root: The folder of the studio, to which the paths in the recipe are relative.
        draft: The draft as it was saved last.
        checked: What is in its text, and what is wrong with it.
        on_change: Called after the text has changed.
        on_step: Called after the step has changed.
        choosing: Held while something that was chosen is looked at before it is written.
    """

    def __init__(self, root: Path, draft: Draft):
        self.root, self.draft = root, draft
        self.checked = check_text(draft.text, _WHERE)
        self.on_change: Callable[[], None] = lambda: None
        self.on_step: Callable[[], Awaitable[None]] | None = None
        self.answers: dict[Any, Any] = {}
        """Answers of long computations by question, kept while the page is open."""
        self.last_error: Exception | None = None
        """Error of the last question."""
        self._running: Computation[Any] | None = None
        self.choosing = asyncio.Lock()
        self._writing, self._saving = asyncio.Lock(), asyncio.Lock()

    def value(self, key: str) -> Any:
        """Return the value of a dotted key of the recipe, or None."""
        found = self.checked.value(key)
        return None if found is UNSET else found

    async def write(self, text: str) -> None:
        """Save another text of the recipe, and check it."""
        self.draft = replace(self.draft, text=text)
        async with self._writing:
            if self.draft.text != text:  # meanwhile more was typed
                return
            checked = await asyncio.to_thread(check_text, text, _WHERE)
            if self.draft.text != text:
                return
            self.checked = checked
        await self._save()
        self.on_change()

    async def wait_until_checked(self) -> None:
        """Wait until what was chosen or typed last is what `checked` tells about.

        A button may be pressed while the text of a field that was just left is still checked.
        """
        async with self.choosing, self._writing:
            pass

    async def set_values(self, changes: Mapping[str, Any]) -> None:
        """Set or remove keys of the recipe; see `with_values`."""
        await self.write(with_values(self.draft.text, changes))

    @telling
    async def go(self, step: Step) -> None:
        """Show another step; one further on only if nothing is missing before it."""
        await self.wait_until_checked()
        is_further = STEPS.index(step) > STEPS.index(self.draft.step)
        if is_further and not self.is_reachable(step):
            return
        self.cancel()
        self.draft = replace(self.draft, step=step)
        await self._save()
        if self.on_step is not None:
            await self.on_step()

    async def _save(self) -> None:
        """Save the draft.

        Raises:
            OutputExistsError: Another tab has saved it meanwhile, and that is what is shown now.
        """
        async with self._saving:
            newer = await asyncio.to_thread(newer_draft, self.root, self.draft)
            if newer is None:
                saved = await asyncio.to_thread(save_draft, self.root, self.draft)
                self.draft = replace(self.draft, saved_s=saved.saved_s)
                return
            self.draft = newer
            self.checked = await asyncio.to_thread(check_text, newer.text, _WHERE)
        if self.on_step is not None:
            await self.on_step()
        raise OutputExistsError(
            "Your last change was not saved: this run was changed in another tab, and is shown as "
            "it was saved there. Make the change again."
        )

    def missing(self, step: Step) -> str:
        """Return a sentence on what a step still needs before the next, or an empty text."""
        if step == "base":
            return "" if self.value("model") else "Choose a base first."
        if step == "data":
            is_chosen = self.value("data.train") and self.value("task")
            return "" if is_chosen else "Choose data first."
        problems = self.checked.problems
        if problems:
            return f"{len(problems)} problem{'s' if len(problems) > 1 else ''} to mend first."
        return ""

    def is_at(self, step: Step) -> bool:
        """Return whether a step is still the one that is shown."""
        return self.draft.step == step

    def begin_at(self, step: str) -> None:
        """Show the step that an address names, if it can be shown; nothing is saved."""
        if self.is_open(step):
            self.draft = replace(self.draft, step=step)

    def is_open(self, name: str) -> TypeGuard[Step]:
        """Return whether a name is that of a step that can be shown now."""
        return any(name == step and self.is_reachable(step) for step in STEPS)

    def is_reachable(self, step: Step) -> bool:
        """Return whether nothing is missing before a step."""
        before = STEPS[: STEPS.index(step)]
        return not any(self.missing(one) for one in before)

    async def ask(
        self, place: ui.element, what: str, function: Callable[..., T], *args: Any, **options: Any
    ) -> T | None:
        """Compute something in a process that has torch; show progress, then errors, in a place.

        A question that is asked again with the same arguments is answered from memory. Another
        question cancels this one.

        Args:
            place: Element that shows the progress and an error; it is emptied.
            what: What is being done, for the reader.
            function: A function of `lorakit.runs`.
            args: Its arguments.
            options: Its arguments by name.

        Returns: The result, or None after an error or a cancellation.
        """
        question = (function.__name__, repr(args), repr(sorted(options.items())))
        self.cancel()
        if question in self.answers:
            place.clear()
            return self.answers[question]
        computation = Computation(self.root, function, *args, **options)
        self._running = computation

        def compute(progress: Progress) -> T:
            try:
                return computation.result()
            except Exception as error:
                self.last_error = error
                raise

        words = what if self.answers else f"{what}; the first time takes longer"
        place.clear()
        with place:
            answer = await LongAction().run(words, compute, end=computation.cancel)
        if answer is None or self._running is not computation:
            return None
        place.clear()
        self.answers[question] = answer
        return answer

    def cancel(self) -> None:
        """Cancel the computation that runs, if any."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()


def show_problems(problems: tuple[Problem, ...]) -> None:
    """List problems with their lines."""
    with ui.element("ul").classes("walk-problems").props("role=alert"):
        for problem in problems:
            with ui.element("li"):
                if problem.line is not None:
                    Text("span", f"line {problem.line}").classes("walk-line")
                Text("span", problem.sentence)
