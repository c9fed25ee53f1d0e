"""The answers beside each other, as they come, with votes and corrections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui

from lorakit.errors import escaped
from lorakit.quickstart.model_files import short_base_name
from lorakit.runs.votes import Added, Vote
from lorakit.serving.clients.playground import Answer, Playground
from lorakit.serving.pooled.labels import LabelledWord, TextLabel, spans
from lorakit.studio.blocks import Text, badge, card, note, problem
from lorakit.studio.context import Studio
from lorakit.studio.frame import error_text
from lorakit.studio.telling import telling

_ENDS = {
    "length": "Cut at the number of new tokens.",
    "stopped": "Stopped.",
}
Save = Callable[[Answer, tuple[Path, list[Vote]]], Awaitable[None]]


class AnswersPart:
    """The cards with the answers."""

    def __init__(self, studio: Studio, state: Playground):
        """Draw the answers to the last question."""
        self._studio = studio
        self._state = state
        self._answers: list[Answer] | None = None
        self._columns: list[Column] = []
        self._area = ui.element("div").classes("grid-2")
        self._saved = ui.element("div").props("role=status aria-live=polite")

    def look(self) -> None:
        """Show what has come since the last look."""
        if self._answers is not self._state.answers:
            self._answers = self._state.answers
            self._saved.clear()
            self._area.clear()
            with self._area:
                self._columns = [Column(self._state, each, self._save) for each in self._answers]
        for column in self._columns:
            column.look()

    async def _save(self, better: Answer, found: tuple[Path, list[Vote]]) -> None:
        added = await self._state.save(found)
        self._saved.clear()
        with self._saved, card():
            Text("p", self._sentence(added))
            with ui.element("div").classes("flex-row"):
                link = ui.link("Train on these votes", self._training_address(added, better))
                link.classes("button button-quiet")
            what = "pairs of a better and a worse answer" if added.is_of_answers else "examples"
            start = self._state.place_of(better.candidate)
            whose = "a new adapter" if start is None else f"a copy of {better.candidate.name}"
            note(f"A new run trains {whose} on these {what}.")

    def _training_address(self, added: Added, better: Answer) -> str:
        """Return the address of a new run on a file of votes, from the adapter that was asked."""
        start = self._state.place_of(better.candidate)
        query = {"data": self._studio.relative(added.file), "model": self._state.base or ""}
        if start is not None:
            query["adapter"] = self._studio.relative(start)
        return f"/new?{urlencode(query)}"

    def _sentence(self, added: Added) -> str:
        file = self._studio.relative(added.file)
        votes = "vote" if added.total == 1 else "votes"
        now = f"{file} has {added.total} {votes} now."
        if not added.added:
            return f"This vote was saved before. {now}"
        return f"Saved; it replaces an earlier vote. {now}" if added.replaced else f"Saved. {now}"


class Column:
    """One answer; it is drawn again when it is over, and its text grows until then."""

    def __init__(self, state: Playground, answer: Answer, save: Save):
        """Draw what there is."""
        self._state, self._answer, self._save = state, answer, save
        self._text = ""
        self._is_drawn_whole = False
        name = answer.candidate.name
        with card(short_base_name(state.base or name) if answer.candidate.is_base else name):
            with ui.element("div").classes("flex-row gap-1"):
                badge("base" if answer.candidate.is_base else "adapter", "queued")
                badge(str(answer.candidate.task), "queued")
            self._body = Text("div", "").classes("whitespace-pre-wrap answer")
            self._more = ui.element("div").classes("flex-col gap-2 answer-more")
        with self._more:
            ui.linear_progress(show_value=False).props('indeterminate aria-label="Answering"')

    def look(self) -> None:
        """Show what has come."""
        answer = self._answer
        if answer.text != self._text:
            self._text = answer.text
            self._body.set_text(escaped(answer.text, keep="\n\t"))
        if answer.is_over and not self._is_drawn_whole:
            self._is_drawn_whole = True
            self._more.clear()
            with self._more:
                self._draw_end()

    def _draw_end(self) -> None:
        answer = self._answer
        if answer.error is not None:
            problem(error_text(answer.error))
        elif answer.label is not None and answer.label.values is not None:
            Text("p", answer.label.label)
        elif answer.label is not None:
            self._draw_label(answer.label)
        elif answer.words is not None:
            self._draw_words(answer.words.words)
        else:
            self._draw_written()

    # ---- written answers ----

    def _draw_written(self) -> None:
        answer = self._answer
        if not answer.text:
            note("The answer is empty.")
        if answer.end in _ENDS:
            note(_ENDS[answer.end])
        with ui.element("div").classes("flex-row gap-2"):
            if len(self._state.answers) > 1:
                ui.button("Better", icon="thumb_up", on_click=telling(self._prefer)).props(
                    "outline"
                ).props["aria-label"] = f"Better: {escaped(answer.candidate.name)}"
            ui.button("Correct", icon="edit", on_click=self._edit).props("outline").props[
                "aria-label"
            ] = f"Correct the answer of {escaped(answer.candidate.name)}"
        self._editor = ui.element("div").classes("flex-col gap-2 w-full")

    async def _prefer(self) -> None:
        await self._save(self._answer, self._state.prefer(self._answer))

    def _edit(self) -> None:
        self._editor.clear()
        with self._editor:
            text = ui.textarea("The right answer", value=self._answer.text).classes("w-full")
            text.props("autogrow outlined autofocus")

            async def save() -> None:
                corrected = self._state.correct(self._answer, text.value or "")
                await self._save(self._answer, corrected)
                self._editor.clear()

            with ui.element("div").classes("flex-row gap-2"):
                ui.button("Save the correction", on_click=telling(save))
                ui.button("Cancel", on_click=self._editor.clear).props("flat")

    # ---- labels ----

    def _draw_label(self, said: TextLabel) -> None:
        probabilities, chosen = said.probabilities, said.chosen
        ordered = sorted(probabilities.items(), key=lambda item: -item[1])
        if chosen is not None:
            Text("p", ", ".join(chosen) if chosen else "None of the labels.")
        with ui.element("div").classes("bars w-full"):
            for label, probability in ordered:
                Text("span", label).classes("bar-name")
                with ui.element("span").classes("bar").props("aria-hidden=true"):
                    ui.element("span").style(f"width: {100 * probability:.2f}%")
                Text("span", f"{100 * probability:.1f}%").classes("number")
        names = {label: escaped(label) for label in probabilities}
        is_several = chosen is not None
        right = ui.select(
            names,
            value=ordered[0][0] if chosen is None else list(chosen),
            label="The right labels" if is_several else "The right label",
            multiple=is_several,
        ).classes("w-full")

        async def save() -> None:
            await self._save(self._answer, self._state.label(self._answer, right.value))

        ui.button("Save as an example", on_click=telling(save)).props("outline")

    def _draw_words(self, words: tuple[LabelledWord, ...]) -> None:
        found = spans(words)
        by_first = {span.first: span for span in found}
        inside = {at for span in found for at in range(span.first, span.last + 1)}
        with ui.element("p").classes("spans"):
            for at, word in enumerate(words):
                if at in by_first:
                    span = by_first[at]
                    with ui.element("mark"):
                        taken = words[span.first : span.last + 1]
                        Text("span", " ".join(each.word.text for each in taken))
                        Text("span", f"{span.label} {100 * span.probability:.0f}%").classes("tag")
                elif at not in inside:
                    Text("span", word.word.text)
        if not found:
            note("No word has a label.")
        ui.button("Correct the tags", icon="edit", on_click=partial(self._edit_tags, words)).props(
            "outline"
        )
        self._editor = ui.element("div").classes("flex-col gap-2 w-full")

    def _edit_tags(self, words: tuple[LabelledWord, ...]) -> None:
        names = {label: escaped(label) for label in self._answer.candidate.labels}
        self._editor.clear()
        with self._editor:
            chosen = [
                ui.select(names, value=each.label, label=escaped(each.word.text)).classes("w-full")
                for each in words
            ]

            async def save() -> None:
                tags = [str(each.value) for each in chosen]
                await self._save(self._answer, self._state.tag(self._answer, tags))
                self._editor.clear()

            with ui.element("div").classes("flex-row gap-2"):
                ui.button("Save the tags", on_click=telling(save))
                ui.button("Cancel", on_click=self._editor.clear).props("flat")
