"""Draw examples as tokens, and the lengths of all as bars."""

from __future__ import annotations

from nicegui import ui

from lorakit.config import TaskType
from lorakit.runs.data_preview import DataPreview, EncodedExample, shorten_middle
from lorakit.studio.blocks import Text

_LEGENDS = {
    TaskType.SEQ_CLS: "The model learns the label; no token counts by itself.",
    TaskType.TOKEN_CLS: "The model learns the tag of each coloured token.",
    TaskType.CAUSAL_LM: "The model learns to write the coloured tokens; the others it only reads.",
    TaskType.SEQ_2_SEQ_LM: "The model learns to write the coloured tokens; the others it reads.",
}


def draw_preview(found: DataPreview, notes: tuple[str, ...], task: str) -> None:
    """Draw the result of `preview_data`.

    Args:
        found: The result.
        notes: What was noticed when the columns were detected.
        task: The task.
    """
    _draw_facts(found)
    _draw_lengths(found)
    sentences = dict.fromkeys((*notes, *found.notes))
    with ui.element("details").classes("walk-notes"):
        Text("summary", f"{len(sentences)} note{'' if len(sentences) == 1 else 's'} on the data")
        with ui.element("ul"):
            for sentence in sentences:
                Text("li", sentence)
    Text("h2", f"The first {len(found.examples)} examples as the model will see them")
    Text("p", _LEGENDS[TaskType(task)]).classes("note")
    with ui.element("ol").classes("walk-examples").props('tabindex=0 aria-label="Examples"'):
        for example in found.examples:
            _draw_example(example)


def _draw_facts(found: DataPreview) -> None:
    facts = {
        "to train on": f"{found.train_examples:,}",
        "to validate": f"{found.validation_examples:,}",
        "longest": f"{found.longest:,} tokens",
        "of examples cut": f"{found.cut_share:.0%}",
        "of tokens padding": f"{found.padding_share:.0%}",
    }
    if found.labels:
        facts["labels"] = f"{len(found.labels)}"
    with ui.element("dl").classes("walk-numbers"):
        for name, value in facts.items():
            with ui.element("div"):
                Text("dt", name)
                Text("dd", value)


def _draw_lengths(found: DataPreview) -> None:
    most = max(count for _, _, count in found.lengths)
    least, longest = found.lengths[0][0], found.lengths[-1][1]
    of = (
        ""
        if found.measured_examples == found.train_examples
        else (f", of {found.measured_examples:,} evenly spaced examples")
    )
    title = f"Tokens of an example: {least:,} to {longest:,}, cut at {found.max_length:,}{of}"
    with ui.element("figure").classes("walk-lengths"):
        with ui.element("div").classes("walk-bars").props("aria-hidden=true"):
            for first, last, count in found.lengths:
                tip = f"{first:,} to {last:,} tokens: {count:,} examples"
                bar = ui.element("div").props(f'title="{tip}"')
                bar.style(f"height: {100 * count / most:.1f}%")
        Text("figcaption", title)


def _draw_example(example: EncodedExample) -> None:
    tokens, counted = shorten_middle(example.tokens, example.counted)
    with ui.element("li"):
        with ui.element("div").classes("walk-tokens"):
            for token, counts in zip(tokens, counted, strict=True):
                span = Text("span", token)
                if counts:
                    span.classes("walk-counted")
        if example.note:
            Text("p", f"{len(example.tokens):,} tokens · {example.note}").classes("note text-sm")
