"""Examples as tokens."""

import pytest

from lorakit.runs.data_preview import DataPreview, EncodedExample

pytestmark = pytest.mark.anyio

PREVIEW = DataPreview(
    columns=("prompt", "completion"),
    labels=(),
    train_examples=9000,
    validation_examples=1000,
    measured_examples=4500,
    examples=(EncodedExample(("<b>", "\n", "yes"), (False, False, True), "1 of 3 tokens count"),),
    lengths=((3, 5, 4000), (6, 8, 500)),
    longest=8,
    cut_share=0.25,
    padding_share=0.5,
    max_length=8,
    notes=("One note.",),
)


async def test_tokens_that_count_are_marked_and_shown_as_text(user):
    from nicegui import ui

    from lorakit.studio.blocks import Text
    from lorakit.studio.pages.new_run.examples import draw_preview

    @ui.page("/preview")
    def preview():
        draw_preview(PREVIEW, ("Another note.",), "CAUSAL_LM")

    await user.open("/preview")
    tokens = [e for e in user.find(kind=Text).elements if e.text in ("<b>", "\\n", "yes")]
    assert {e.text: "walk-counted" in e.classes for e in tokens} == {
        **{"<b>": False, "\\n": False},
        "yes": True,
    }
    for text in ("9,000", "25%", "50%", "2 notes on the data", "1 of 3 tokens count"):
        await user.should_see(text)
    await user.should_see("of 4,500 evenly spaced examples")
