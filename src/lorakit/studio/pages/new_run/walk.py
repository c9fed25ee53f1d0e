"""New run: the page, its five steps, and the draft that survives a reload."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from urllib.parse import parse_qs

from nicegui import ui

from lorakit.errors import MissingFileError
from lorakit.recipes import yaml_text
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.yaml_edits import UNSET, with_values
from lorakit.runs.drafts import STEPS, Draft, Step, load_draft, new_draft, save_draft
from lorakit.runs.new_recipe import free_output, recipe_like
from lorakit.runs.trials import kind_of, recipe_of_best
from lorakit.runs.warm_process import warm_up
from lorakit.studio.blocks import SteadyPart, Text, note
from lorakit.studio.context import Studio, current
from lorakit.studio.frame import page, set_title, show_error
from lorakit.studio.pages.new_run import base, data, method, more_steps, plan, start
from lorakit.studio.pages.new_run.state import TITLES, Walk

_STEPS: Mapping[Step, Callable[[Walk], Awaitable[None]]] = {
    "base": base.draw,
    "data": data.draw,
    "method": method.draw,
    "plan": plan.draw,
    "start": start.draw,
}


@page("/new", "New run")
async def new_run() -> None:
    """Show the step of a draft; the address says which draft, or which run it begins from."""
    query = ui.context.client.request.query_params
    ui.add_css(
        files("lorakit.studio.pages.new_run").joinpath("new_run.css").read_text(encoding="utf-8")
    )
    if query.get("continue"):
        set_title("Train on")
        await more_steps.draw(current(), query["continue"])
        return
    draft = await asyncio.to_thread(
        _draft_for, current(), *(query.get(key, "") for key in ("draft", "from", "start"))
    )
    if query.get("data"):
        draft = _draft_on(*(query.get(key, "") for key in ("data", "model", "adapter")))
    walk = Walk(current().root, draft)
    walk.begin_at(query.get("step", ""))
    ui.timer(0.1, lambda: asyncio.to_thread(warm_up), once=True)
    await _Frame(walk).draw()


def _draft_for(studio: Studio, id: str, like: str, start: str) -> Draft:
    """Return the draft that an address names.

    Args:
        studio: The studio.
        id: Id of a saved draft.
        like: Run whose recipe it begins with, or search or study, whose best one it takes.
        start: Run whose recipe and adapter it begins with.
    """
    if id:
        try:
            return load_draft(studio.root, id)
        except MissingFileError:
            return new_draft()
    if not (like or start):
        return new_draft()
    directory = studio.path(like or start)
    is_searched = like and kind_of(directory) is not None
    recipe = recipe_of_best(directory) if is_searched else RunDirectory.open(directory).recipe()
    text = recipe_like(recipe, free_output(studio.root, recipe.output))
    if start:  # the adapter says what is adapted, and how
        text = with_values(text, {"start_from": start, "lora": UNSET})
    return save_draft(studio.root, new_draft(text, step="data" if start else "method"))


def _draft_on(data: str, model: str, adapter: str) -> Draft:
    """Return a draft for a data file, whose columns the data step detects.

    Args:
        data: Path of the file below the folder.
        model: The base.
        adapter: Path of an adapter below the folder to train on from; empty for a new one.
    """
    values = {"model": model or None, "start_from": adapter or None, "data": {"train": data}}
    known = {key: value for key, value in values.items() if value is not None}
    return new_draft(yaml_text.to_text(known), step="data" if model else "base")


class _Frame:
    """The steps above, the current one, and the way on below; each step has its address."""

    def __init__(self, walk: Walk):
        self.walk = walk
        self.address = ""
        walk.on_change = self._draw_ways
        walk.on_step = self._draw_step

    async def draw(self) -> None:
        self.nav = SteadyPart("nav").classes("walk-steps").props('aria-label="Steps"')
        self.body = ui.element("div").classes("walk-body")
        self.foot = SteadyPart().classes("walk-foot")
        ui.navigate.history.replace(self._address())
        self.address = self._address()
        ui.on("walk-address", lambda event: self._follow(str(event.args)))
        ui.run_javascript(
            "addEventListener('popstate', () => emitEvent('walk-address', location.search))"
        )
        await self._draw_step()

    def _address(self) -> str:
        return f"/new?draft={self.walk.draft.id}&step={self.walk.draft.step}"

    async def _follow(self, query: str) -> None:
        """Show the step to which the browser has gone back or forward."""
        if f"/new{query}" == self.address:  # only the part after # is another
            return
        step = parse_qs(query.removeprefix("?")).get("step", [""])[0]
        self.address = f"/new{query}"
        await self.walk.go(step if self.walk.is_open(step) else self.walk.draft.step)

    async def _draw_step(self) -> None:
        if self.address != self._address():
            self.address = self._address()
            ui.navigate.history.push(self.address)
        self._draw_ways()
        self.body.clear()
        with self.body:
            try:
                await _STEPS[self.walk.draft.step](self.walk)
            except Exception as error:
                show_error(error)

    def _draw_ways(self) -> None:
        here = self.walk.draft.step
        reachable = tuple(step for step in STEPS if self.walk.is_reachable(step))
        missing = self.walk.missing(here)
        self.nav.show((here, reachable), self._draw_steps)
        self.foot.show((here, missing), lambda: self._draw_foot(here, missing))

    def _draw_steps(self) -> None:
        for number, step in enumerate(STEPS, start=1):
            self._draw_step_button(number, step, self.walk.draft.step)

    def _draw_foot(self, here: Step, missing: str) -> None:
        at = STEPS.index(here)
        if at:
            back = STEPS[at - 1]
            button = ui.button("Back", on_click=lambda: self.walk.go(back))
            button.props("outline no-caps")
        if missing and here != "start":
            note(missing)
        if at + 1 < len(STEPS):
            following = STEPS[at + 1]
            button = ui.button(
                f"Next: {TITLES[following]}", on_click=lambda: self.walk.go(following)
            )
            button.props("unelevated no-caps").classes("walk-next")
            button.set_enabled(not missing)

    def _draw_step_button(self, number: int, step: Step, here: Step) -> None:
        button = ui.element("button").classes("walk-step").props("type=button")
        if step == here:
            button.props('aria-current="step"')
        if step != here and not self.walk.is_reachable(step):
            button.props("disabled")
        button.on("click", lambda: self.walk.go(step))
        with button:
            Text("span", str(number)).classes("walk-number").props("aria-hidden=true")
            Text("span", TITLES[step])
