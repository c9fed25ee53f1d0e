"""Which base and adapters are in memory: choosing, what it costs, loading, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from nicegui import ui

from lorakit.errors import LorakitError, escaped
from lorakit.quickstart.model_files import base_name
from lorakit.runs.adapters import AdapterFacts, read_adapter
from lorakit.runs.base_memory import base_bytes, gigabytes, require_room
from lorakit.runs.mixtures import mixture_place, read_mixture
from lorakit.serving.clients.candidates import MOST_ADAPTERS, Wanted
from lorakit.serving.clients.playground import Playground
from lorakit.studio.blocks import Text, card, empty, note, problem
from lorakit.studio.context import Studio
from lorakit.studio.frame import error_text
from lorakit.studio.telling import telling


class ModelsPart:
    """The card with the models."""

    def __init__(
        self,
        studio: Studio,
        state: Playground,
        found: Sequence[AdapterFacts],
        wanted: Sequence[Path],
        mixture: str,
    ):
        """Draw it.

        Args:
            studio: The studio.
            state: The playground.
            found: The adapters below the folder.
            wanted: Runs or adapters that the address names.
            mixture: Name of a mixture that the address names.
        """
        self._state = state
        self._adapters = {each.name: each for each in found if each.problem is None}
        self._shown: object = None
        self._asked: object = None
        chosen = [
            each.name
            for path in wanted
            for each in self._adapters.values()
            if path in (each.place, each.directory)
        ]
        if mixture:
            place = mixture_place(studio.root, mixture)
            name = read_mixture(place)
            self._adapters[name] = read_adapter(studio.root, place / "adapter")
            chosen.append(name)
        if not chosen and state.wanted is not None:
            chosen = [name for name in state.wanted.adapters if name in self._adapters]
        with card("Models"):
            if not self._adapters:
                empty(
                    "There is no adapter in this folder yet. Train one, or name a base below.",
                    "New run",
                    "/new",
                )
            self._draw_choice(chosen)
            for each in found:
                if each.problem is not None:
                    note(f"{each.name} is left out: {each.problem}")
            self._cost = ui.element("div")
            with ui.element("div").classes("flex-row gap-2"):
                self._load = ui.button("Load", on_click=telling(self._start))
                self._unload = ui.button("Unload", on_click=state.unload).props("outline")
            self._status = ui.element("div").props("role=status aria-live=polite")
        ui.timer(0, self._show_cost, once=True)

    def _draw_choice(self, chosen: list[str]) -> None:
        bases = list(dict.fromkeys(each.base for each in self._adapters.values() if each.base))
        of_chosen = [self._adapters[name].base for name in chosen]
        in_memory = self._state.base
        base = next(iter([*filter(None, of_chosen), *filter(None, [in_memory]), *bases]), None)
        if base is not None and base not in bases:
            bases.append(base)
        for name in chosen:
            other = self._adapters[name].base
            if other != base:
                problem(
                    f"{name} is left out: its base is {other}, expected {base}, the base of the "
                    "others. Choose the other base to try it."
                )
        chosen = [name for name in chosen if self._adapters[name].base == base]
        with ui.element("div").classes("grid-2"):
            self._base = ui.select(
                {name: escaped(base_name(name)) for name in bases},
                value=base,
                label="Base: a folder or a hub id",
                with_input=True,
                new_value_mode="add-unique",
                on_change=self._change_base,
            ).classes("w-full")
            self._chosen = ui.select(
                self._options(base),
                value=chosen,
                label=f"Adapters, up to {MOST_ADAPTERS}",
                multiple=True,
                on_change=self._show_cost,
            )
            self._chosen.classes("w-full").props(f"use-chips max-values={MOST_ADAPTERS}")
        self._unquantized = ui.checkbox(
            "Load the base as it is saved, although training quantized it",
            on_change=self._show_cost,
        )
        self._unquantized.set_visibility(any(each.bits for each in self._adapters.values()))

    def _options(self, base: str | None) -> dict[str, str]:
        return {
            name: escaped(f"{name} · {_describe(each)}")
            for name, each in self._adapters.items()
            if each.base == base
        }

    async def _change_base(self) -> None:
        options = self._options(self._base.value)
        self._chosen.set_options(options, value=[n for n in self._chosen.value if n in options])
        await self._show_cost()

    def _read_choices(self) -> Wanted:
        adapters = {name: self._adapters[name].place for name in self._chosen.value}
        return Wanted(self._base.value, adapters, bool(self._unquantized.value))

    async def _show_cost(self) -> None:
        """Show what the chosen base takes, before it is loaded."""
        base = self._base.value
        self._cost.clear()
        if base is None:
            return
        self._asked = asked = object()
        facts = next(
            (self._adapters[name] for name in self._chosen.value), AdapterFacts("", Path())
        )
        bits = None if self._unquantized.value else facts.bits
        takes, name = await asyncio.to_thread(base_bytes, base, facts.dtype, bits), base_name(base)
        how = (
            f"in {bits} bits" if bits else f"in {facts.dtype}" if facts.dtype else "as it is saved"
        )
        if self._asked is not asked:  # another base was chosen meanwhile
            return
        with self._cost:
            if base == self._state.base:
                note(f"{name} is in memory; its adapters are exchanged without loading it again.")
            elif takes is None:
                note(f"What {name} takes is not known: its weights are not on this machine yet.")
            else:
                note(
                    f"{name} takes about {gigabytes(takes)} of memory {how}. Only one base is in "
                    "memory at a time."
                )
        if takes is None or base == self._state.base:
            return
        try:
            room = await self._state.room()
            if self._asked is asked:
                with self._cost:
                    where = f" on {room.device}" if room.device else ""
                    note(f"{gigabytes(room.free_bytes)} are free{where}.")
                    require_room(base, takes, room.free_bytes)
        except LorakitError as error:
            with self._cost:
                problem(str(error))

    def _start(self) -> None:
        self._state.load(self._read_choices())
        self.look()

    def look(self) -> None:
        """Show what has changed since the last look."""
        state, loading = self._state, self._state.loading
        stage = None if loading is None else (loading.stage, int(loading.seconds))
        now = (stage, loading and loading.is_cancelled, state.base, state.error, state.wanted)
        if now == self._shown:
            return
        if self._shown is not None and loading is None:
            ui.timer(0, self._show_cost, once=True)
        self._shown = now
        self._load.set_enabled(loading is None and self._base.value is not None)
        self._unload.set_visibility(state.base is not None and loading is None)
        self._status.clear()
        with self._status:
            self._draw_status()

    def _draw_status(self) -> None:
        state, loading = self._state, self._state.loading
        if loading is not None:
            ui.linear_progress(show_value=False).props('indeterminate aria-label="Loading"')
            words = "Cancelling after: " if loading.is_cancelled else ""
            with ui.element("div").classes("flex-row gap-2"):
                Text("span", f"{words}{loading.stage} … {loading.seconds:.0f} s")
                if not loading.is_cancelled:
                    ui.button("Cancel", on_click=loading.cancel).props("outline dense")
        elif state.error is not None:
            problem(error_text(state.error))
        elif state.wanted is not None:
            names = ", ".join(state.wanted.adapters)
            note(
                f"In memory: {base_name(state.base or '')}" + (f" with {names}." if names else ".")
            )


def _describe(adapter: AdapterFacts) -> str:
    ranks = [f"rank {low}" for low in adapter.ranks[:1]]
    if len(adapter.ranks) > 1:
        ranks = [f"rank {adapter.ranks[0]} to {adapter.ranks[-1]}"]
    return ", ".join([adapter.task or "task not recorded", *ranks])
