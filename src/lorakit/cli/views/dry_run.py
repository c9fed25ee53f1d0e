"""Print what a run would do, with examples as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len

from lorakit.cli.views.console import console, heading, number_text, pairs, say
from lorakit.cli.views.training import show_data, show_injection
from lorakit.errors import escaped
from lorakit.runs.data_preview import shorten_middle

if TYPE_CHECKING:
    from lorakit.training.preview import DryRun
    from lorakit.training.tasks import PreviewExample

MAX_LINE_WIDTH = 100
MARK = "^"
INDENT = "     "
_BETWEEN = "  "
"""What separates two answers that are beside each other."""


def show_dry_run(dry: DryRun) -> None:
    """Print adapter, data, training arguments and the first examples."""
    show_injection(dry.injection, dry.parameter_count)
    show_data(
        {
            "train_examples": dry.train_examples,
            "validation_examples": dry.validation_examples,
            "notes": dry.notes,
        }
    )
    if dry.labels:
        say(f"  labels: {', '.join(map(escaped, dry.labels))}")
    heading(f"Training: {dry.steps:,} optimizer steps")
    settings = {key: number_text(value) for key, value in dry.recipe.training.items()}
    pairs({"products in": dry.dtypes["compute"], **settings})
    has_marks = any(any(example.counted) for example in dry.preview_examples)
    legend = f" ({MARK} marks what counts in the loss)" if has_marks else ""
    heading(f"The first examples as the model will see them{legend}")
    for number, example in enumerate(dry.preview_examples, start=1):
        show_example(number, example)


def show_example(number: int, example: PreviewExample) -> None:
    """Print the tokens of an example, those that count in the loss marked from below."""
    note = f"; {escaped(example.note)}" if example.note else ""
    say(f"  {number}. {len(example.tokens):,} tokens{note}")
    width = min(console().width, MAX_LINE_WIDTH) - len(INDENT)
    lines = _lines(example, width) if example.rejected is None else _pair_lines(example, width)
    for line in lines:
        say(f"{INDENT}{line}")


def _lines(example: PreviewExample, width: int) -> Iterator[str]:
    return marked_lines(*shorten_middle(example.tokens, example.counted), width)


def _pair_lines(example: PreviewExample, width: int) -> Iterator[str]:
    """Yield the lines of the prompt, then the chosen and the rejected answer in columns."""
    prompt, counted = example.tokens[: example.prompt], example.counted[: example.prompt]
    yield from marked_lines(*shorten_middle(prompt, counted), width)
    half = (width - len(_BETWEEN)) // 2
    chosen = replace(
        example,
        tokens=example.tokens[example.prompt :],
        counted=example.counted[example.prompt :],
    )
    columns = (
        [title, *marked_lines(*shorten_middle(one.tokens, one.counted), half)]
        for title, one in (("chosen:", chosen), ("rejected:", example.rejected or chosen))
    )
    for left, right in zip_longest(*columns, fillvalue=""):
        yield f"{left}{' ' * (half - cell_len(left))}{_BETWEEN}{right}".rstrip()


def marked_lines(tokens: Sequence[str], counted: Sequence[bool], width: int) -> Iterator[str]:
    """Yield lines of at most `width` columns, each followed by marks if some of its tokens count.

    >>> for line in marked_lines(["to", "be", "or", "not"], [False, False, True, True], 8):
    ...     print(line)
    to be or
          ^^
    not
    ^^^
    """
    text, marks = "", ""
    for token, counts in zip(tokens, counted, strict=True):
        token_text = escaped(token)
        if text and cell_len(text) + cell_len(token_text) + 1 > width:
            yield from _line_with_marks(text, marks)
            text, marks = "", ""
        gap = " " if text else ""
        text += gap + token_text
        marks += gap + (MARK if counts else " ") * cell_len(token_text)
    yield from _line_with_marks(text, marks)


def _line_with_marks(text: str, marks: str) -> Iterator[str]:
    yield text
    if MARK in marks:
        yield marks.rstrip()
