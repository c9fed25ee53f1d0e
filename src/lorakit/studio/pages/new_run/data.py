"""Step 2: the data, its columns, and the examples as the model will see them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nicegui import background_tasks, ui

from lorakit.errors import DataError, escaped
from lorakit.files.disks import size_text
from lorakit.recipes.yaml_edits import UNSET
from lorakit.runs.data_files import FOLDER, find_data
from lorakit.runs.data_preview import preview_data
from lorakit.runs.new_recipe import free_output, recipe_path, with_settings, write_recipe_for
from lorakit.studio.blocks import card, note, problem
from lorakit.studio.frame import show_error
from lorakit.studio.pages.new_run.examples import draw_preview
from lorakit.studio.pages.new_run.state import Walk, show_problems
from lorakit.studio.pages.new_run.streamed_upload import StreamedUpload
from lorakit.studio.telling import telling

KINDS = {
    "SEQ_CLS": "label texts (SEQ_CLS)",
    "TOKEN_CLS": "label words (TOKEN_CLS)",
    "CAUSAL_LM": "continue texts and chats (CAUSAL_LM)",
    "SEQ_2_SEQ_LM": "turn a text into another (SEQ_2_SEQ_LM)",
    "dpo": "prefer one of two answers (objective dpo)",
    "kto": "learn from votes on answers (objective kto)",
    "reward": "score answers (objective reward)",
}
_PAIR = {"prompt": "prompt", "chosen": "better answer", "rejected": "worse answer"}
_COLUMNS = {
    "SEQ_CLS": {"text": "text", "text_pair": "second text", "label": "label"},
    "TOKEN_CLS": {"tokens": "words", "tags": "tags"},
    "SEQ_2_SEQ_LM": {"source": "text to read", "target": "text to write"},
    "kto": {"prompt": "prompt", "completion": "answer", "label": "vote"},
    "reward": _PAIR,
    "dpo": _PAIR,
    "ipo": _PAIR,
    "orpo": _PAIR,
}
_LAYOUTS = {
    "text": {"text": "text"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "messages": {"messages": "messages"},
    "alpaca": {},
}
_LAYOUT_NAMES = {
    "text": "texts",
    "prompt_completion": "prompts with completions",
    "messages": "chats: lists of messages",
    "alpaca": "instructions with outputs (Alpaca)",
}
_SEPARATORS = ("|", ";", ",")
_NONE = "(none)"
_NOT_COLUMNS = ("train", "validation_fraction", "max_train_rows", "max_validation_rows")
"""Keys of `data` that another file does not change."""


async def draw(walk: Walk) -> None:
    """Draw the step."""
    await _DataStep(walk).draw()


class _DataStep:
    def __init__(self, walk: Walk):
        self.walk = walk
        self.columns: tuple[str, ...] = ()
        self.mapped: Any = None
        self.choices = 0
        """How often a file or a task was chosen; an answer to an earlier choice is dropped."""

    async def draw(self) -> None:
        with ui.element("div").classes("walk-columns"):
            with card("Choose the training data", "walk-tall"):
                self.upload = StreamedUpload(
                    self.walk.root,
                    "Drop a csv, tsv, json, jsonl or parquet file here, or press +",
                    lambda name: background_tasks.create(self.take_file(name)),
                    self.show_refusal,
                )
                self.upload.props("flat bordered").classes("walk-drop")
                self.refusal = ui.element("div").classes("walk-slot")
                self.files = ui.element("div").classes("walk-choices")
                self.mapping = ui.element("div").classes("walk-mapping")
            with card(None, "walk-tall"):
                self.progress = ui.element("div").classes("walk-slot")
                self.preview = ui.element("div").classes("walk-preview")
        await self._draw_files()
        self._draw_mapping()
        train = self.walk.value("data.train")
        if isinstance(train, str) and not self.walk.value("task"):
            # The base with which the file could not be read may be another one now.
            background_tasks.create(self.choose(train))
        else:
            background_tasks.create(self.show_preview())

    async def _draw_files(self) -> None:
        found = await asyncio.to_thread(find_data, self.walk.root)
        names = {one.name: f"{escaped(one.name)} · {size_text(one.size_bytes)}" for one in found}
        train = self.walk.value("data.train")
        chosen = train if isinstance(train, str) else None
        if chosen is not None and chosen not in names:
            names = {chosen: escaped(chosen), **names}
        self.files.clear()
        with self.files:
            if train and chosen is None:
                note(f"{len(train)} sources are in the recipe (data.train). A file replaces them.")
            if not names:
                note("There is no data in this folder yet.")
                return
            radio = ui.radio(names, value=chosen, on_change=lambda event: self.choose(event.value))
            radio.props('aria-label="Data files"')

    # ---- a file ----

    async def take_file(self, name: str) -> None:
        """Take a file that has been dropped; one that cannot be read is not kept."""
        self.upload.reset()
        await self.choose(name, is_new=True)
        await self._draw_files()

    def show_refusal(self, error: Exception) -> None:
        """Show why a file was not taken."""
        self.upload.reset()
        self.refusal.clear()
        with self.refusal:
            show_error(error)

    @telling
    async def choose(self, name: str, kind: str | None = None, *, is_new: bool = False) -> None:
        """Detect the columns of a file and write the recipe for it."""
        self.preview.clear()
        self.refusal.clear()
        self.choices += 1
        walk, choice = self.walk, self.choices
        output = walk.value("output") if kind else None
        output = str(output or free_output(walk.root, Path(name).name))
        start = walk.value("start_from")
        trained = self.kind if start and self.kind in KINDS else None
        found = await walk.ask(
            *(self.progress, f"Reading {Path(name).name}", write_recipe_for, name),
            kind or trained,  # an adapter is trained on for its task
            model=str(walk.value("model")),
            path=recipe_path(walk.root, output),
            output=output,
            start_from=start,
        )
        if choice != self.choices:
            return
        if found is None:
            if is_new and isinstance(walk.last_error, DataError):
                await asyncio.to_thread((walk.root / FOLDER / Path(name).name).unlink, True)
            elif kind is None:
                await self._forget(name, output)
            return
        is_alike = found.kind == self.kind
        text = with_settings(found.text, walk.checked.values) if is_alike else found.text
        await walk.write(text)
        self.columns = found.columns
        self._draw_mapping()
        if found.problem is not None:
            with self.refusal:
                problem(found.problem)
        await self.show_preview(found.notes)

    async def _forget(self, name: str, output: str) -> None:
        """Take a file whose columns are not known, instead of another one."""
        data = self.walk.value("data") or {}
        of_other = {f"data.{key}": UNSET for key in data if key not in _NOT_COLUMNS}
        learnt = {} if self.walk.value("start_from") else {"task": UNSET, "objective": UNSET}
        await self.walk.set_values({"data.train": name, "output": output, **learnt, **of_other})
        self.columns = ()
        self._draw_mapping()

    # ---- the columns ----

    @property
    def kind(self) -> str:
        """What the recipe learns: its objective, or its task."""
        return str(self.walk.value("objective.type") or self.walk.value("task") or "")

    def _draw_mapping(self) -> None:
        walk, kind = self.walk, self.kind
        state = (self.columns, dict(walk.value("data") or {}), kind)
        if state == self.mapped:  # a menu that is open, and the focus, stay
            return
        self.mapped = state
        self.mapping.clear()
        if not walk.value("data.train"):
            return
        with self.mapping:
            train = walk.value("data.train")
            if isinstance(train, str):
                options = KINDS | ({} if kind in ("", *KINDS) else {kind: escaped(kind)})
                select = ui.select(
                    options,
                    value=kind or None,
                    label="task",
                    on_change=lambda event: self.choose(train, event.value),
                )
                select.props("dense outlined options-dense")
            keys = dict(_COLUMNS.get(kind, {}))
            if kind == "CAUSAL_LM":
                layout = str(walk.value("data.format"))
                self._draw_layout(layout)
                keys = dict(_LAYOUTS.get(layout, {}))
            optional = ("text_pair", "prompt") if keys == _PAIR else ("text_pair",)
            for key, meaning in keys.items():
                self._draw_column(key, meaning, is_optional=key in optional)
            if kind == "SEQ_CLS":
                self._draw_separator()

    def _draw_layout(self, layout: str) -> None:
        select = ui.select(
            _LAYOUT_NAMES,
            value=layout if layout in _LAYOUT_NAMES else None,
            label="what an example is (data.format)",
            on_change=lambda event: self.map("format", event.value),
        )
        select.props("dense outlined options-dense")

    def _draw_separator(self) -> None:
        value = str(self.walk.value("data.label_separator") or _NONE)
        select = ui.select(
            {name: escaped(name) for name in dict.fromkeys([_NONE, *_SEPARATORS, value])},
            value=value,
            label="what separates several labels (data.label_separator)",
            on_change=lambda event: self.map("label_separator", event.value),
        )
        select.props("dense outlined options-dense")

    def _draw_column(self, key: str, meaning: str, *, is_optional: bool) -> None:
        chosen = self.walk.value(f"data.{key}")
        value = str(chosen or (_NONE if is_optional and key not in self.columns else key))
        known = dict.fromkeys([*((_NONE,) if is_optional else ()), value, *self.columns])
        select = ui.select(
            {name: escaped(name) for name in known},
            value=value,
            label=f"column of the {meaning} (data.{key})",
            on_change=lambda event: self.map(key, event.value),
        )
        select.props("dense outlined options-dense")

    @telling
    async def map(self, key: str, column: str) -> None:
        """Read the examples in another layout, or a part of them from another column."""
        await self.walk.set_values({f"data.{key}": UNSET if column == _NONE else column})
        self._draw_mapping()
        await self.show_preview()

    # ---- the examples ----

    async def show_preview(self, notes: tuple[str, ...] = ()) -> None:
        """Show the examples of the recipe, or what is wrong with it."""
        walk = self.walk
        self.preview.clear()
        if not walk.value("data.train") or not walk.value("task"):
            with self.preview:
                note("Ten examples appear here as the model will see them.")
            return
        if walk.checked.recipe is None:
            with self.preview:
                show_problems(walk.checked.problems)
            return
        found = await walk.ask(
            *(self.progress, "Encoding the examples", preview_data, walk.checked.recipe)
        )
        if found is None or not walk.is_at("data"):
            return
        self.columns = found.columns
        self._draw_mapping()
        self.preview.clear()
        with self.preview:
            draw_preview(found, notes, self.kind)
