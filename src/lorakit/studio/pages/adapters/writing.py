"""Merging an adapter into its base, converting it, exporting it for another server."""

from __future__ import annotations

from collections.abc import Mapping

from nicegui import ui

from lorakit.runs.adapters import AdapterFacts
from lorakit.runs.paths import new_path
from lorakit.studio.blocks import card, note
from lorakit.studio.context import Studio
from lorakit.studio.pages.adapters.commands import CommandsPart
from lorakit.studio.telling import telling

_DTYPES = {
    "": "as the saved base",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
_FORMATS = {
    "peft": "peft: PEFT's files",
    "portable": "portable: for vLLM, TGI and llama.cpp's converter",
    "gguf": "gguf: one file for llama.cpp",
    "loralib": "loralib: a state dict",
}
_UPDATES_ONLY = ("portable", "gguf")
"""Formats without a place for a head that was trained in full."""

_ENDINGS = {"gguf": ".gguf", "loralib": ".safetensors"}


def draw_writing(studio: Studio, adapter: AdapterFacts, commands: CommandsPart) -> None:
    """Draw the cards that write an adapter in another form."""
    name = adapter.name.rpartition("/")[2]
    place = str(adapter.place)
    formats = {
        kind: text
        for kind, text in _FORMATS.items()
        if adapter.is_updates_only or kind not in _UPDATES_ONLY
    }
    with ui.element("div").classes("grid-2"):
        _draw_merging(studio, name, place, commands)
        _draw_converting(studio, name, place, formats, commands)
        _draw_exporting(studio, name, place, commands)


def _draw_merging(studio: Studio, name: str, place: str, commands: CommandsPart) -> None:
    with card("Merge"):
        note("Adds the update to the base and writes a checkpoint that needs no lorakit.")
        target = ui.input("New directory", value=f"{name}-merged").classes("w-full")
        dtype = ui.select(_DTYPES, value="", label="dtype of the weights").classes("w-full")

        def merge() -> None:
            output = new_path(studio.root, target.value or "")
            words = ["merge", place, str(output)]
            words += ["--dtype", dtype.value] if dtype.value else []
            commands.start(f"Merge into {studio.relative(output)}", words)

        ui.button("Merge", on_click=telling(merge))


def _draw_converting(
    studio: Studio, name: str, place: str, formats: Mapping[str, str], commands: CommandsPart
) -> None:
    with card("Convert"):
        note("Writes the adapter in another format, or with another rank.")
        if len(formats) < len(_FORMATS):
            note(
                "Its head was trained in full, for which portable and gguf have no place: merge it "
                "for such readers."
            )
        first = "portable" if "portable" in formats else "peft"
        kind = ui.select({**formats}, value=first, label="Format").classes("w-full")
        target = ui.input("New directory or file", value=f"{name}-{first}").classes("w-full")
        kind.on_value_change(
            lambda event: target.set_value(f"{name}-{event.value}{_ENDINGS.get(event.value, '')}")
        )
        rank = ui.number("Rank (empty keeps it)", min=1, precision=0).classes("w-full")

        def convert() -> None:
            output = new_path(studio.root, target.value or "")
            words = ["convert", place, str(output), "--to", str(kind.value)]
            words += ["--rank", f"{rank.value:.0f}"] if rank.value else []
            commands.start(f"Convert into {studio.relative(output)}", words)

        ui.button("Convert", on_click=telling(convert))


def _draw_exporting(studio: Studio, name: str, place: str, commands: CommandsPart) -> None:
    with card("Export"):
        note("Prepares the adapter for another server, with a script that starts it.")
        servers = {"vllm": "vLLM", "ray": "Ray Serve with vLLM"}
        server = ui.select(servers, value="vllm", label="Server").classes("w-full")
        target = ui.input("New directory", value=f"{name}-vllm").classes("w-full")
        server.on_value_change(lambda event: target.set_value(f"{name}-{event.value}"))
        storage = ui.input("Folder of adapters in cloud storage, such as s3://bucket/adapters")
        storage.classes("w-full").bind_visibility_from(server, "value", value="ray")

        def export() -> None:
            output = new_path(studio.root, target.value or "")
            words = ["export", place, "--for", str(server.value), "--output", str(output)]
            if server.value == "ray" and storage.value:
                words += ["--storage", storage.value]
            commands.start(f"Export into {studio.relative(output)}", words)

        ui.button("Export", on_click=telling(export))
