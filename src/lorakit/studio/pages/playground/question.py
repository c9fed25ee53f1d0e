"""The question that all models get, and how their answers are written."""

from __future__ import annotations

from nicegui import ui

from lorakit.config import TaskType
from lorakit.serving.clients.candidates import Question
from lorakit.serving.clients.playground import Playground
from lorakit.serving.clients.talking import AnswerOptions
from lorakit.studio.blocks import Text, card
from lorakit.studio.telling import telling

_MOST_NEW_TOKENS = 4096
_MOST_SEED = 2**53 - 1
"""A browser rounds larger numbers."""
_SAME = "All models get the same text. Ctrl+Enter asks."
_SAME_SEED = (
    "All models get the same text and the same seed. Temperature 0 takes the likeliest token each "
    "time. Ctrl+Enter asks."
)
_WRITING = (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)


class QuestionPart:
    """The card with the question."""

    def __init__(self, state: Playground):
        """Draw it with the last question."""
        self._state = state
        self._shown: object = None
        question, options = state.question, state.options
        with card("Question"):
            self._system = ui.input("System message (may be empty)", value=question.system)
            self._system.classes("w-full")
            self._text = ui.textarea("Text", value=question.text).classes("w-full")
            self._text.props("autogrow outlined").on("keydown.ctrl.enter", telling(self._ask))
            self._second = ui.textarea("Second text of the pair", value=question.second)
            self._second.classes("w-full").props("autogrow outlined")
            self._writing = ui.element("div").classes("flex-row gap-4 sampling")
            with self._writing:
                self._tokens = ui.number(
                    "New tokens at most", value=options.max_new_tokens, min=1, max=_MOST_NEW_TOKENS
                )
                self._temperature = ui.number(
                    "Temperature", value=options.temperature, min=0, max=2, step=0.1
                )
                self._top_p = ui.number("Top p", value=options.top_p, min=0.01, max=1, step=0.05)
                self._seed = ui.number(
                    "Seed", value=options.seed, min=0, max=_MOST_SEED, step=1, precision=0
                )
            with ui.element("div").classes("flex-row gap-2"):
                self._button = ui.button("Ask", on_click=telling(self._ask))
                self._stop = ui.button("Stop", on_click=state.stop).props("outline")
            self._same = Text("p", "").classes("note")

    def _ask(self) -> None:
        pairs = any(each.takes_pairs for each in self._state.candidates)
        question = Question(
            self._text.value or "",
            (self._second.value or "") if pairs else "",
            (self._system.value or "") if self._system.visible else "",
        )
        self._state.ask(
            question,
            AnswerOptions(
                int(self._tokens.value or 1),
                float(self._temperature.value or 0),
                float(self._top_p.value or 1),
                int(self._seed.value or 0),
            ),
        )
        self.look()

    def look(self) -> None:
        """Show the fields that the models in memory have, and whether they are asked now."""
        state = self._state
        now = ([each.name for each in state.candidates], state.is_answering)
        if now == self._shown:
            return
        self._shown = now
        talks = any(each.form == "conversation" for each in state.candidates)
        self._system.set_visibility(talks)
        self._second.set_visibility(any(each.takes_pairs for each in state.candidates))
        writes = any(each.task in _WRITING for each in state.candidates)
        self._writing.set_visibility(writes)
        self._same.show(_SAME_SEED if writes else _SAME)
        self._button.set_enabled(bool(state.candidates))
        self._stop.set_visibility(state.is_answering)
