"""The address of the models in memory for other programs, with lines to copy."""

from __future__ import annotations

from nicegui import ui

from lorakit.errors import escaped
from lorakit.serving.clients.candidates import Question
from lorakit.serving.clients.example_calls import curl_call, python_call
from lorakit.serving.clients.playground import Playground
from lorakit.studio.blocks import Text, card, copyable, note
from lorakit.studio.context import Studio

_QUESTION = Question("What colour is the sky?", "The sky is blue.")
"""What the lines ask before anything was asked on the page."""


class OtherProgramsPart:
    """The card with address and key; it is there while something is in memory."""

    def __init__(self, studio: Studio, state: Playground):
        """Prepare it."""
        self._key, self._state = studio.api_key, state
        self._url = str(ui.context.client.request.base_url) + "v1"
        self._shown: object = None
        self._model: ui.select | None = None
        self._area = ui.element("div")

    def look(self) -> None:
        """Show what is in memory now, and the last question."""
        state = self._state
        now = ([each.name for each in state.candidates], state.question, state.options)
        if now == self._shown:
            return
        self._shown = now
        self._area.clear()
        if not state.candidates:
            return
        with self._area, card("From other programs"):
            note(
                "While they are in memory, these models also answer OpenAI's protocol at this "
                "address. Whoever has the key can ask them."
            )
            with ui.element("div").classes("grid-2"):
                for name, text in (("Address", self._url), ("Key", self._key)):
                    with ui.element("div"):
                        Text("h3", name)
                        copyable(text, f"the {name.lower()}")
            self._draw_choice()

    def _draw_choice(self) -> None:
        names = {each.name: escaped(each.name) for each in self._state.candidates}
        before = None if self._model is None else self._model.value
        self._model = ui.select(
            names,
            value=before if before in names else [*names][-1],
            label="Model",
            on_change=lambda event: self._draw_lines(event.value),
        ).classes("w-full")
        self._model.set_visibility(len(names) > 1)
        self._lines = ui.element("div").classes("flex-col gap-2")
        self._draw_lines(self._model.value)

    def _draw_lines(self, name: str) -> None:
        state = self._state
        candidate = next(each for each in state.candidates if each.name == name)
        question = state.question if state.question.text else _QUESTION
        asked = (self._url, self._key, candidate, question, state.options)
        self._lines.clear()
        with self._lines:
            for program, text in (("curl", curl_call(*asked)), ("Python", python_call(*asked))):
                Text("h3", program)
                copyable(text, f"the {program} lines")
