"""Combining adapters of one base: sliders, trying at once, writing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nicegui import ui

from lorakit.errors import ConfigError, escaped
from lorakit.runs.adapters import AdapterFacts
from lorakit.runs.mixtures import mixture_name, write_mixture
from lorakit.runs.paths import new_path
from lorakit.studio.blocks import Text, card, note
from lorakit.studio.context import Studio
from lorakit.studio.long_action import LongAction, Progress
from lorakit.studio.pages.adapters.commands import CommandsPart
from lorakit.studio.telling import telling

_METHODS = {
    "linear": "linear: the weighted sum, of the same rank",
    "cat": "cat: the exact sum, ranks add up",
    "svd": "svd: the nearest of one rank",
    "ties": "ties: prunes, then keeps what agrees in sign",
    "dare_linear": "dare_linear: drops at random, then sums",
    "dare_ties": "dare_ties: drops at random, then ties",
    "magnitude_prune": "magnitude_prune: keeps the largest entries",
}
_MOST_OTHERS = 4
_LEAST, _MOST, _STEP = -2.0, 2.0, 0.05


class CombiningPart:
    """The card that combines an adapter with others of its base."""

    def __init__(
        self,
        studio: Studio,
        adapter: AdapterFacts,
        alike: Sequence[AdapterFacts],
        commands: CommandsPart,
    ):
        """Draw it.

        Args:
            studio: The studio.
            adapter: The adapter.
            alike: Adapters of the same base and task.
            commands: Where the command appears that combines them.
        """
        self._studio, self._commands = studio, commands
        self._adapters = {each.name: each for each in alike}
        self._weights: dict[str, float] = {adapter.name: 1.0}
        self._first, self._has_head = adapter, bool(adapter.labels)
        others = {name: escaped(name) for name in self._adapters if name != adapter.name}
        with card("Combine"):
            if not others:
                note("No other adapter has this base and task; the slider scales this one.")
            ui.select(
                others,
                value=[],
                multiple=True,
                label="Other adapters of the same base and task",
                on_change=lambda event: self._choose(adapter.name, event.value),
            ).classes("w-full").props(f"use-chips max-values={_MOST_OTHERS}").set_visibility(
                bool(others)
            )
            self._sliders = ui.element("div").classes("sliders")
            with ui.element("div").classes("grid-2"):
                self._method = ui.select(_METHODS, value="linear", label="Method")
                self._target = ui.input("New directory", value=self._free_name())
            self._preview = Text("p", "").classes("note")
            if self._has_head:
                note(f"Head, labels and tokenizer are those of {adapter.name}.")
            with ui.element("div").classes("flex-row gap-2"):
                ui.button("Try in the playground", on_click=self._open_playground)
                ui.button("Combine", on_click=telling(self._combine)).props("outline")
            self._trying = LongAction()
        self._draw_sliders()

    def _free_name(self) -> str:
        number = 1
        while (self._studio.root / f"combined-{number}").exists():
            number += 1
        return f"combined-{number}"

    def _choose(self, first: str, names: Sequence[str]) -> None:
        chosen = [first, *names]
        share = round(1 / len(chosen), 2)
        is_untouched = len(set(self._weights.values())) == 1
        self._weights = {
            name: share if is_untouched else self._weights.get(name, share) for name in chosen
        }
        self._draw_sliders()

    def _draw_sliders(self) -> None:
        self._sliders.clear()
        with self._sliders:
            for name in self._weights:
                Text("span", name).classes("bar-name")
                slider = ui.slider(min=_LEAST, max=_MOST, step=_STEP, value=self._weights[name])
                slider.props["aria-label"] = f"Weight of {escaped(name)}"
                number = ui.number(
                    value=self._weights[name],
                    step=_STEP,
                    on_change=lambda event, name=name: self._set(name, event.value),
                )
                number.props("dense").props["aria-label"] = f"Weight of {escaped(name)} as a number"
                number.bind_value(slider)
        self._show()

    def _set(self, name: str, weight: float | None) -> None:
        self._weights[name] = round(float(weight or 0), 4)
        self._show()

    def _show(self) -> None:
        self._preview.show(f"ΔW = {mixture_name(self._weights)}")

    async def _open_playground(self) -> None:
        directories = {name: self._adapters[name].directory for name in self._weights}
        head = self._first.name if self._has_head else None
        weights, method = dict(self._weights), self._method.value

        def write(_: Progress) -> Path:
            return write_mixture(self._studio.root, directories, weights, method, head)

        place = await self._trying.run("Combining", write)
        if place is not None:
            ui.navigate.to(f"/playground?mixture={place.name}")

    def _combine(self) -> None:
        output = new_path(self._studio.root, self._target.value or "")
        used = {name: weight for name, weight in self._weights.items() if weight}
        if not used:
            raise ConfigError(
                "Nothing to combine: got weights of 0 alone, expected one above or below it. Move "
                "a slider."
            )
        parts = [f"{self._adapters[name].place}={weight:g}" for name, weight in used.items()]
        words = ["combine", *parts, "--output", str(output), "--method", self._method.value]
        words += ["--heads-from", str(self._first.place)] if self._has_head else []
        self._commands.start(f"Combine into {self._studio.relative(output)}", words)
