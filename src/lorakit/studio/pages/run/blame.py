"""Which training examples are behind an answer of a run, or behind its mistakes."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from lorakit.errors import escaped
from lorakit.runs.blame_answer import BlameAnswer, blame_of
from lorakit.runs.command import command_line
from lorakit.runs.warm_process import Computation
from lorakit.runs.watch import RunWatch
from lorakit.studio.blocks import Text, copyable, fold, note, table
from lorakit.studio.long_action import LongAction

_CLASSIFIED, _TAGGED = "SEQ_CLS", "TOKEN_CLS"
_PROMPTED = ("CAUSAL_LM", "SEQ_2_SEQ_LM")

Question = tuple[str | None, str | None, str | None]
"""Answer, prompt and label, as `blame_of` takes them; all None asks about the mistakes."""

_answers: dict[Path, tuple[float, Question, BlameAnswer]] = {}
"""The last answer of this process for each run, with the time of its adapter; a reload shows it."""


class BlamePart:
    """The section of a finished run in which one asks for the examples behind what it says."""

    def __init__(self, watch: RunWatch):
        """Draw it at this place of the page; `update` shows or hides it."""
        self._watch = watch
        self._task = watch.detail.text("task")
        with (
            fold("Which examples did this?") as self._section,
            ui.element("div").classes("flex-col gap-4"),
        ):
            note(
                "The training examples that made an answer likelier, or the mistakes on the "
                "validation examples worse: often wrong labels. It computes one gradient for each "
                "training example."
            )
            self._draw_questions()
            self._action = LongAction()
            self._found = ui.element("div").classes("flex-col gap-2")
        self.update()

    def update(self) -> None:
        """Show what is known, if the run has finished."""
        is_finished = self._watch.state == "finished"
        self._section.set_visibility(is_finished)
        known = _answers.get(self._watch.directory)
        if is_finished and known is not None and known[0] == self._adapter_time():
            self._show(*known[1:])
        else:
            self._found.clear()

    def _draw_questions(self) -> None:
        with ui.element("div").classes("flex-row gap-2"):
            button = ui.button("Behind the mistakes", on_click=self._ask_about_mistakes)
            button.props("outline no-caps")
        self._prompt = self._label = None
        if self._task == _TAGGED:
            return
        is_classified = self._task == _CLASSIFIED
        with ui.element("div").classes("flex-row gap-2"):
            if self._task in _PROMPTED:
                self._prompt = _field("What it answers")
            self._answer = _field("A text to classify" if is_classified else "An answer")
            if is_classified:
                self._label = _field("Its label (empty: what the adapter says)")
            name = "Behind this label" if is_classified else "Behind this answer"
            button = ui.button(name, on_click=self._ask_about_answer).props("outline no-caps")
            button.bind_enabled_from(self._answer, "value", lambda text: bool((text or "").strip()))

    async def _ask_about_mistakes(self) -> None:
        await self._ask((None, None, None))

    async def _ask_about_answer(self) -> None:
        extra = [field and (field.value or None) for field in (self._prompt, self._label)]
        await self._ask((self._answer.value, extra[0], extra[1]))

    async def _ask(self, question: Question) -> None:
        answer, prompt, label = question
        watch, adapter_time = self._watch, self._adapter_time()
        computation = Computation(
            watch.root, blame_of, watch.directory, answer, prompt=prompt, label=label
        )

        self._found.clear()
        found = await self._action.run(
            "Starting; the first time takes longer",
            lambda progress: computation.result(progress.say),
            end=computation.cancel,
        )
        if found is None:
            return
        self._action.clear()
        _answers[watch.directory] = (adapter_time, question, found)
        self._show(question, found)

    def _show(self, question: Question, found: BlameAnswer) -> None:
        self._found.clear()
        with self._found:
            Text("h3", found.heading)
            for sentence in found.notes:
                note(sentence)
            here = f"{self._watch.root}/"  # as on the other pages, paths begin at the folder
            rows = [
                (one.place.removeprefix(here), *one.values, f"{one.influence:+.2%}")
                for one in found.examples
            ]
            columns = ("where", *found.columns, "influence")
            table(columns, rows, numbers_from=len(columns) - 1)
            copyable(command_line(self._watch.root, self._words(question)), "the command")
            if question[0] is None:
                note(
                    "With --drop 20 --retrain, the command also trains without the first 20 and "
                    "compares. Look at them first: the label of a validation example may be wrong."
                )

    def _words(self, question: Question) -> tuple[str, ...]:
        """Return the command line that asks the same."""
        answer, prompt, label = question
        asked = ("--mistakes",) if answer is None else (answer,)
        given = [("--prompt", prompt), ("--label", label)]
        options = [word for name, text in given if text is not None for word in (name, text)]
        return ("lorakit", "blame", self._watch.path, *asked, *options)

    def _adapter_time(self) -> float:
        try:
            return (self._watch.directory / "adapter").stat().st_mtime
        except OSError:
            return 0.0


def _field(label: str) -> ui.textarea:
    return ui.textarea(escaped(label)).props("outlined dense autogrow").classes("grow")
