"""Draw examples as tokens, and the lengths of all as bars."""

from __future__ import annotations

from nicegui import ui

from lorakit.runs.data_preview import DataPreview, EncodedExample, shorten_middle
from lorakit.studio.blocks import Text

_PAIR = "The model learns to prefer the first answer to the second, by the coloured tokens."
_LEGENDS = {
    "SEQ_CLS": "The model learns the label; no token counts by itself.",
    "TOKEN_CLS": "The model learns the tag of each coloured token.",
    "CAUSAL_LM": "The model learns to write the coloured tokens; the others it only reads.",
    "SEQ_2_SEQ_LM": "The model learns to write the coloured tokens; the others it reads.",
    "dpo": _PAIR,
    "ipo": _PAIR,
    "orpo": _PAIR,
    "kto": "The model learns to write the coloured tokens of good answers, and not those of bad.",
    "reward": "The model learns to score the first answer higher than the second.",
}


def draw_preview(found: DataPreview, notes: tuple[str, ...], kind: str) -> None:
    """Draw the result of `preview_data`.

    Args:
        found: The result.
        notes: What was noticed when the columns were detected.
        kind: The objective, or else the task.
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
    Text("p", _LEGENDS[kind]).classes("note")
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
    rejected, prompt = example.rejected, example.prompt
    with ui.element("li"):
        if rejected is None:
            _draw_tokens(example.tokens, example.counted)
        else:
            _draw_tokens(example.tokens[:prompt], example.counted[:prompt])
            answers = {
                "chosen": (example.tokens[prompt:], example.counted[prompt:]),
                "rejected": (rejected.tokens, rejected.counted),
            }
            with ui.element("div").classes("walk-answers"):
                for name, tokens in answers.items():
                    with ui.element("div"):
                        Text("p", name).classes("note text-sm")
                        _draw_tokens(*tokens)
        if example.note:
            Text("p", f"{len(example.tokens):,} tokens · {example.note}").classes("note text-sm")


def _draw_tokens(tokens: tuple[str, ...], counted: tuple[bool, ...]) -> None:
    with ui.element("div").classes("walk-tokens"):
        for token, counts in zip(*shorten_middle(tokens, counted), strict=True):
            span = Text("span", token)
            if counts:
                span.classes("walk-counted")
