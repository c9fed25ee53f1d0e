"""The results of a run: its report, its confusion matrix, and examples right and wrong."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path

import markdown2
from nicegui import ui

from lorakit.errors import escaped
from lorakit.runs.predictions import Prediction, Predictions
from lorakit.studio.blocks import Text, note, problem, table

_EXAMPLES = 10
_MOST_CHARACTERS = 100_000
_PICTURE_BYTES = 4_000_000


def show_report(text: str) -> None:
    """Show a report in Markdown; its HTML is shown as text, and its pictures are links."""
    is_cut = len(text) > _MOST_CHARACTERS
    text = text[:_MOST_CHARACTERS]
    text = re.sub(r"^!\[[^\]]*\]\((loss|confusion)\.png\)$", "", text, flags=re.MULTILINE)
    html = markdown2.markdown(
        escaped(text, keep="\n").replace("![", "["),
        extras=["code-friendly", "fenced-code-blocks", "highlightjs-lang", "tables"],
        safe_mode="escape",
    )
    html = re.sub(r"^<h1>.*</h1>$", "", html, count=1, flags=re.MULTILINE)
    html = html.replace("<table>", '<div class="scroll"><table class="plain">')
    ui.html(html.replace("</table>", "</table></div>"), sanitize=True).classes("report").props(
        "tabindex=0"
    )
    if is_cut:
        note("The report is long; the rest is in report.md, among the files below.")


def show_predictions(found: Predictions) -> None:
    """Show the confusion, base against adapter, and examples wrong and right."""
    if found.problem is not None:
        problem(found.problem)
    if not found.all:
        return
    if found.are_numbers:
        _show_numbers(found)
        return
    right = sum(one.is_right for one in found.all)
    count = len(found.all)
    words = f"{right:,} of {count:,} validation examples are right ({right / count:.1%})"
    if found.has_base:
        base = sum(one.is_base_right for one in found.all)
        words += f", of the base alone {base:,} ({base / count:.1%})"
    note(f"{words}.")
    if found.has_base:
        _base_table(found)
    if classes := found.classes():
        _confusion_table(found, classes)
    most, least = ", the most confident first", ", the least confident first"
    if not found.has_confidence:
        most = least = ""
    _examples(f"Wrong{most}", found.wrong(), found)
    _examples(f"Right{least}", found.right(), found)


def _show_numbers(found: Predictions) -> None:
    off = [one.off_by for one in found.all if one.off_by is not None]
    note(f"{len(off):,} validation examples, on average {sum(off) / len(off):.4g} off.")
    ordered = found.farthest()
    _examples("The farthest off", ordered, found)
    _examples("The nearest", ordered[::-1], found)


def show_picture(path: Path, description: str) -> None:
    """Show a PNG of the run, if it is there."""
    if path.is_file() and not path.is_symlink() and path.stat().st_size <= _PICTURE_BYTES:
        data = base64.b64encode(path.read_bytes()).decode()
        with ui.element("img").props(f'src="data:image/png;base64,{data}"') as picture:
            picture.props(f'alt="{description}"').classes("picture")


def _base_table(found: Predictions) -> None:
    counts = found.base_table()
    Text("h3", "Base against adapter")
    rows = [
        (name, *(f"{counts.get((is_base_right, is_right), 0):,}" for is_right in (True, False)))
        for name, is_base_right in (("base right", True), ("base wrong", False))
    ]
    table(("examples", "adapter right", "adapter wrong"), rows)


def _confusion_table(found: Predictions, classes: Sequence[str]) -> None:
    Text("h3", "Confusion matrix")
    note("Rows are the expected classes, columns the predictions; the diagonal is right.")
    counts = found.confusion()
    totals = {name: sum(counts.get((name, other), 0) for other in classes) for name in classes}
    with ui.element("div").classes("scroll"), ui.element("table").classes("plain confusion"):
        with ui.element("thead"), ui.element("tr"):
            Text("td", "")
            for name in classes:
                Text("th", name).props("scope=col").classes("number")
        with ui.element("tbody"):
            for expected in classes:
                with ui.element("tr"):
                    Text("th", expected).props("scope=row")
                    for predicted in classes:
                        count = counts.get((expected, predicted), 0)
                        share = count / totals[expected] if totals[expected] else 0.0
                        kind = "right" if expected == predicted else "wrong"
                        Text("td", f"{count:,}").classes(f"number {kind}").style(
                            f"--share: {math.sqrt(share):.3f}"  # rare mistakes are seen, too
                        )


def _examples(title: str, chosen: Sequence[Prediction], found: Predictions) -> None:
    Text("h3", f"{title} ({len(chosen):,})")
    if not chosen:
        note("There is none.")
        return
    header = ["input", "expected", "adapter", *(["base"] if found.has_base else [])]
    texts = len(header)
    header += ["confidence"] if found.has_confidence else []
    rows = [
        [
            one.text[:600] + ("…" if len(one.text) > 600 else ""),
            one.expected,
            one.adapter,
            *([one.base or ""] if found.has_base else []),
            "" if one.confidence is None else f"{one.confidence:.1%}",
        ][: len(header)]
        for one in chosen[:_EXAMPLES]
    ]
    table(header, rows, numbers_from=texts)
