"""What an adapter is made of: its files, and what `lorakit analyze` has found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from nicegui import ui

from lorakit.errors import LorakitError
from lorakit.files.disks import size_text
from lorakit.quickstart.model_files import base_name
from lorakit.runs.adapters import AdapterFacts, Analysis, format_setting, read_analysis
from lorakit.runs.paths import join_paths
from lorakit.studio.blocks import Text, card, facts, note, problem
from lorakit.studio.context import Studio
from lorakit.studio.pages.adapters.commands import CommandsPart
from lorakit.studio.telling import telling

_HIDDEN = ("base_model_name_or_path", "task_type", "peft_type", "inference_mode", "revision")
_PICTURES = {
    "energy": "Share of the energy that each rank keeps",
    "spectra": "Singular values of the updates",
    "layers": "Norm and effective rank by layer",
    "amplification": "How much the update amplifies what the base has",
}


async def draw_contents(studio: Studio, adapter: AdapterFacts, commands: CommandsPart) -> None:
    """Draw the facts of an adapter and its analysis."""
    if adapter.problem is not None:
        problem(f"{adapter.name} cannot be used: {adapter.problem}")
        return
    with card("What it is"):
        facts(
            {
                "Base": base_name(adapter.base or "not recorded"),
                "Task": adapter.task or "not recorded",
                "Labels": ", ".join(adapter.labels),
                "Adapted modules": f"{adapter.modules}, of rank {ranks_text(adapter) or 'none'}",
                "Parameters": f"{adapter.parameters:,} ({size_text(adapter.size_bytes)})",
                **{
                    key: format_setting(value)
                    for key, value in adapter.settings.items()
                    if key not in _HIDDEN
                },
            }
        )
    with ui.element("div").classes("flex-row gap-2"):
        ui.link(
            "Try it in the playground", f"/playground?runs={quote(join_paths([adapter.name]))}"
        ).classes("button")
    area = ui.element("div").classes("flex-col gap-4")

    async def show() -> None:
        try:
            found = await asyncio.to_thread(read_analysis, adapter)
        except LorakitError as error:
            found = None
            problem(str(error))
        area.clear()
        with area, card("What it has learned"):
            if found is None:
                _draw_start(adapter, commands, show)
            else:
                _draw_analysis(studio, found)

    with area:
        await show()


def ranks_text(adapter: AdapterFacts) -> str:
    """Return the ranks of an adapter's modules: "8", "4 to 16", or nothing."""
    low, high = (adapter.ranks[0], adapter.ranks[-1]) if adapter.ranks else ("", "")
    return str(low) if low == high else f"{low} to {high}"


def _draw_start(
    adapter: AdapterFacts, commands: CommandsPart, show: Callable[[], Awaitable[None]]
) -> None:
    note(
        "The analysis measures the norm and the effective rank of every update, how low the rank "
        "could have been, and which modules share directions."
    )
    with_base = ui.checkbox(
        "Load the base too, and measure what the updates amplify (takes its memory)"
    )

    def start() -> None:
        words = ["analyze", str(adapter.place), "--output", str(adapter.analysis_folder)]
        words += [] if with_base.value else ["--no-base"]
        commands.start(f"Analyse {adapter.name}", words, show)

    ui.button("Analyse", on_click=telling(start))


def _draw_analysis(studio: Studio, found: Analysis) -> None:
    if found.is_outdated:
        problem(
            f"The adapter has been written after this analysis. Remove "
            f"{studio.relative(found.folder)} and analyse again."
        )
    _table(
        "Kinds of modules",
        ("Modules", "Count", "Rank", "Norm (mean)", "Norm (largest)", "Effective rank (mean)"),
        [
            (
                row.kind,
                str(row.count),
                ", ".join(map(str, row.ranks)),
                f"{row.norm:.3g}",
                f"{row.largest_norm:.3g}",
                f"{row.effective_rank:.1f}",
            )
            for row in found.kinds
        ],
    )
    _table(
        "The largest updates",
        ("Module", "Norm", "Share of Σ‖ΔW‖²", "Effective rank", "Rank"),
        [
            (row.module, f"{row.norm:.3g}", f"{share:.1%}", f"{row.effective_rank:.1f}", str(row.r))
            for row, share in found.largest()
        ],
    )
    with ui.element("div").classes("grid-2"):
        for picture in found.pictures:
            words = _PICTURES.get(picture.stem) or _other_picture(picture.stem)
            with ui.element("figure").classes("picture"):
                ui.image(picture).props["alt"] = words
                Text("figcaption", words)
    note(
        f"All of it is in {studio.relative(found.folder)}: report.md, layers.csv and the pictures."
    )


def _other_picture(stem: str) -> str:
    kind, _, width = stem.partition("-")
    if kind == "similarity" and width.isdecimal():
        return f"Similarity of the updates that read {width} features"
    return stem.replace("-", " ").capitalize()


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    Text("h3", title)
    with (
        ui.element("div").classes("scroll").props(f'tabindex=0 role=region aria-label="{title}"'),
        ui.element("table").classes("plain"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for number, name in enumerate(columns):
                Text("th", name).props("scope=col").classes("number" if number else "")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for number, cell in enumerate(row):
                        Text("td", cell).classes("number" if number else "")
