"""Step 1: the base model, what it is, and its modules."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nicegui import ui

from lorakit.config import TaskType
from lorakit.errors import LorakitError, escaped
from lorakit.files.disks import size_text
from lorakit.quickstart.model_files import base_model_path, base_name
from lorakit.runs.base_models import BaseModel, cached_bases, describe_base, find_bases
from lorakit.runs.drafts import recent_drafts
from lorakit.studio.blocks import Text, card, facts, note
from lorakit.studio.frame import show_error
from lorakit.studio.pages.new_run.state import Walk
from lorakit.studio.telling import telling

_USES = {
    TaskType.SEQ_CLS: "label texts",
    TaskType.TOKEN_CLS: "label words",
    TaskType.CAUSAL_LM: "continue texts and chats",
    TaskType.SEQ_2_SEQ_LM: "turn a text into another",
}


async def draw(walk: Walk) -> None:
    """Offer bases, and describe the chosen one."""
    choices = await asyncio.to_thread(_choices, walk.root)
    with ui.element("div").classes("walk-columns"):
        with card("Choose a base model", "walk-tall"):
            _draw_drafts(walk)
            chosen = walk.value("model")
            with ui.element("div").classes("walk-choices"):
                choice = ui.radio(
                    choices,
                    value=chosen if chosen in choices else None,
                    on_change=lambda event: take_listed(event.value),
                )
                choice.props('aria-label="Base models"')
            with ui.element("div").classes("walk-inline"):
                shown = chosen if isinstance(chosen, str) and chosen not in choices else ""
                name = ui.input("Another: hub id or folder", value=shown)
                name.props("dense outlined").classes("grow")
                name.on("keydown.enter", lambda: choose(name.value))
                take = ui.button("Take it", on_click=lambda: choose(name.value))
                take.props("outline no-caps")
        with card(None, "walk-tall") as about:
            pass

    async def take_listed(model: str | None) -> None:
        if model != walk.value("model"):  # else the list has followed the recipe
            await choose(model)

    @telling
    async def choose(model: str | None) -> None:
        model = (model or "").strip()
        async with walk.choosing:
            if model and await _describe(walk, model, about):
                await walk.set_values({"model": model})
        is_listed = walk.value("model") in choices
        choice.set_value(walk.value("model") if is_listed else None)

    await _describe(walk, str(walk.value("model") or ""), about)


def _choices(root: Path) -> dict[str, str]:
    """Return what each base to choose is called, by the value of `model`."""
    packaged = {str(base_model_path()): "quickstart · comes along, tiny, for a first try"}
    local = {name: f"{escaped(name)} · in this folder" for name in find_bases(root)}
    cached = {name: f"{escaped(name)} · downloaded" for name in cached_bases()}
    return packaged | local | cached


def _draw_drafts(walk: Walk) -> None:
    """Link to runs that were begun and not started."""
    others = [draft for draft in recent_drafts(walk.root) if draft.id != walk.draft.id]
    if others and not walk.draft.text.strip():
        with ui.element("p").classes("note"):
            Text("span", "Begun and not started: ")
            for draft in others[:3]:
                name = _name_of(draft.text)
                ui.link(escaped(name), f"/new?draft={draft.id}").classes("walk-draft")


def _name_of(text: str) -> str:
    """Return the run directory that a draft's text names."""
    lines = (line.partition("output:")[2] for line in text.splitlines() if "output:" in line)
    name = next(lines, "").partition(" #")[0].strip().strip("'\"")
    return Path(name).name or "a run without data"


async def _describe(walk: Walk, model: str, place: ui.element) -> bool:
    """Show what a base is; return whether it is one."""
    try:
        found = await asyncio.to_thread(describe_base, model, walk.root) if model else None
    except LorakitError as error:
        place.clear()
        with place:
            show_error(error)
            if walk.value("model"):
                note(f"The base is still {base_name(str(walk.value('model')))}.")
        return False
    place.clear()
    with place:
        if not model:
            Text("h2", "What it is")
            note("Choose a base first: the model whose weights stay as they are.")
            return False
        if found is None:
            Text("h2", model)
            note(
                "This hub id is not on this machine. It is downloaded when its tokenizer or its "
                "weights are needed first, which takes a network and a moment."
            )
            return True
        _draw_base(found)
    return True


def _draw_base(found: BaseModel) -> None:
    Text("h2", base_name(found.name))
    about = {
        "Kind": f"{found.architecture or found.kind}",
        "Made to": ", ".join(_USES[task] for task in found.tasks),
        "Parameters": None if found.parameters is None else f"{found.parameters:,}",
        "Weights": f"{size_text(found.size_bytes)} {' '.join(found.dtypes)}".strip(),
        "Layers": _count(found.layers),
        "Width": _count(found.hidden_size),
        "Vocabulary": _count(found.vocabulary),
        "Positions": None if found.positions is None else f"{found.positions:,} tokens at most",
        "Chat template": "yes" if found.has_chat_template else "no",
    }
    facts(about, "walk-facts")
    if found.modules:
        Text("h3", "Modules")
        with ui.element("div").classes("walk-scroll"), ui.element("table").classes("plain"):
            _draw_row("th", ("name", "shape", "how many"))
            for module in found.modules:
                shape = " × ".join(map(str, module.shape))
                _draw_row("td", (module.name, shape, str(module.count)))


def _draw_row(tag: str, cells: tuple[str, ...]) -> None:
    with ui.element("tr"):
        for cell in cells:
            Text(tag, cell)


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
