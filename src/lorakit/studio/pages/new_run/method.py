"""Step 3: how to train; a dozen fields and the whole recipe beside them, one text."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from lorakit.recipes.yaml_edits import UNSET, key_lines
from lorakit.runs.recipe_form import (
    FormField,
    field_text,
    help_of,
    list_fields,
    parse_field,
    with_field,
)
from lorakit.studio.blocks import Text, card
from lorakit.studio.pages.new_run.state import Walk, show_problems
from lorakit.studio.telling import telling

_TYPING_MS = 300


async def draw(walk: Walk) -> None:
    """Draw the step."""
    _MethodStep(walk).draw()


class _MethodStep:
    def __init__(self, walk: Walk):
        self.walk = walk
        self.fields = list_fields(walk.checked)
        self.inputs: dict[str, Any] = {}

    def draw(self) -> None:
        with ui.element("div").classes("walk-columns walk-method"):
            with card("Method", "walk-tall"), ui.element("div").classes("walk-fields"):
                for field in self.fields:
                    self._draw_field(field)
            with card(None, "walk-tall"):
                Text("h2", "The recipe").props("id=recipe-title")
                self.editor = ui.codemirror(
                    self.walk.draft.text,
                    language="YAML",
                    indent="  ",
                    on_change=lambda event: self.take_text(event.value),
                )
                _follow_dark_mode(self.editor)
                self.editor.classes("walk-editor").props('aria-labelledby="recipe-title"')
                self.problems = ui.element("div").classes("walk-slot")
        self.show_problems()

    def _draw_field(self, field: FormField) -> None:
        value = self.walk.checked.value(field.key)
        help_text = help_of(field.key, str(self.walk.value("task")))
        if field.choices:
            made: Any = ui.select(
                self._options(field, value),
                value=_choice_name(field, value),
                label=field.key,
                on_change=lambda event: self.write_choice(field, event.value),
            )
        else:
            made = ui.input(
                field.key,
                value=field_text(field, value),
                placeholder=str(field.default),
                on_change=lambda event: self.write_field(field, event.value),
            )
            made.props(f"debounce={_TYPING_MS} stack-label")
        made.props(f'dense outlined options-dense hide-bottom-space hint="{_plain(help_text)}"')
        self.inputs[field.key] = made

    def _options(self, field: FormField, value: Any) -> list[str]:
        name = _choice_name(field, value)
        return list(dict.fromkeys([*field.choices, name]))

    # ---- from the fields ----

    @telling
    async def write_field(self, field: FormField, typed: str | None) -> None:
        """Write what was typed into a field into the text."""
        if field_text(field, self.walk.checked.value(field.key)) != (typed or "").strip():
            await self._write(field, parse_field(field, typed))

    @telling
    async def write_choice(self, field: FormField, name: str) -> None:
        """Write a chosen value into the text."""
        if name in field.choices and name != _choice_name(
            field, self.walk.checked.value(field.key)
        ):
            await self._write(field, field.choices[name])

    async def _write(self, field: FormField, value: Any) -> None:
        if not self.walk.checked.is_yaml:
            return  # the text has to be mended first; its problem is shown
        await self.walk.write(with_field(self.walk.draft.text, field, value))
        self.editor.set_value(self.walk.draft.text)
        self.show_problems()
        line = key_lines(self.walk.draft.text).get(field.key)
        if line is not None:
            self.editor.reveal_line(line)

    # ---- from the text ----

    @telling
    async def take_text(self, text: str) -> None:
        """Take a text that was typed, and show its values in the fields."""
        if text == self.walk.draft.text:
            return
        await self.walk.write(text)
        if self.walk.draft.text != text:
            return
        for field in self.fields:
            value = self.walk.checked.value(field.key)
            element = self.inputs[field.key]
            if field.choices:
                element.set_options(self._options(field, value), value=_choice_name(field, value))
            elif parse_field(field, element.value) != value:
                element.set_value(field_text(field, value))
        self.show_problems()

    def show_problems(self) -> None:
        """Show each problem at its field and at its line, and all below the text."""
        checked = self.walk.checked
        for key, element in self.inputs.items():
            found = checked.problems_at(key)
            element.error = " ".join(problem.sentence for problem in found) or None
            element.set_enabled(checked.is_yaml)
        last = self.walk.draft.text.count("\n") + 1
        lines = {p.line for p in checked.problems if p.line is not None and p.line <= last}
        self.editor.decorations = [
            {"kind": "line", "line": line, "class": "walk-bad-line"} for line in sorted(lines)
        ]
        self.problems.clear()
        if checked.problems:
            with self.problems:
                show_problems(checked.problems)


def _follow_dark_mode(editor: ui.codemirror) -> None:
    """Give an editor the colours of the page, which the browser knows and may change."""

    def follow(event: Any) -> None:
        if not editor.is_deleted:
            editor.set_theme("githubDark" if event.args else "githubLight")

    ui.on("walk-dark", follow)
    ui.run_javascript(_TELL_DARK_MODE)


_TELL_DARK_MODE = """
(() => {
  const tell = () => emitEvent("walk-dark", document.body.classList.contains("body--dark"));
  const watch = {attributes: true, attributeFilter: ["class"]};
  new MutationObserver(tell).observe(document.body, watch);
  tell();
})()
"""


def _choice_name(field: FormField, value: Any) -> str:
    """Return what the value of a choice is called; another value is shown as it is."""
    names = {id(known): name for name, known in field.choices.items() if known is UNSET}
    if value is UNSET or value is None:
        return next(iter(names.values()), "")
    same = (name for name, known in field.choices.items() if known is not UNSET and known == value)
    return next(same, field_text(field, value))


def _plain(text: str) -> str:
    """Return a text for a property in double quotes."""
    return text.replace('"', "'")
