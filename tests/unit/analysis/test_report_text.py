"""Sentences and tables of a report."""

import re

from lorakit.analysis import analyze_adapter, compare_adapters
from lorakit.analysis.report_text import (
    adapter_sections,
    comparison_sections,
    number,
    recommendation,
)
from tiny_models.adapters import (
    adapter_of,
    factors_with,
    layered_adapter,
    steep_adapter,
    weights_of,
)

PICTURES = dict.fromkeys(
    ("energy", "spectra", "layers", "amplification", "similarity 10", "similarity 24"), "a.png"
)


def text_of(analysis, note=None):
    return "\n\n".join(adapter_sections(analysis, PICTURES, "##", note))


def test_the_numbers_of_the_report_are_those_of_the_analysis():
    steep = steep_adapter()
    text = text_of(analyze_adapter(steep, weights_of(steep), name="mine", energy=0.95))
    assert "2 updates ΔW = s·B·A for `some/base`, 144 parameters." in text
    assert (
        "Rank 2 keeps 95% of the energy of mine and is the smallest rank that keeps 95%; the "
        "adapter was trained with 4: 72 parameters instead of 144."
    ) in text
    assert "| 90% | 2 | 95% | 72 | 2 | 72 | 2 to 2 | 72 |" in text
    assert "| 99% | 3 | 100% | 108 | 3 | 108 | 3 to 3 | 108 |" in text
    # ‖ΔW‖ over both layers is √40; the stable rank is 20 / 16; the entropy is 0.942 nats.
    assert "| q | 2 | 4 | 6.32 | 2.56 | 1.25 | 2 | 2 | 3 |" in text
    assert "nan" not in text.lower() and "inf" not in text.lower().replace("infinite", "")


def test_a_rank_that_is_used_to_the_last_is_not_recommended_away():
    flat, _, _ = factors_with([1.0] * 4, 10, 8)
    assert recommendation(analyze_adapter(adapter_of({"m": flat}), name="flat")) == (
        "No lower rank keeps 90% of the energy of flat: the trained 4 is fully used, and a higher "
        "one may be worth a try."
    )


def test_amplification_is_read_against_random_directions_or_left_out_with_the_reason():
    adapter = steep_adapter()
    assert "is left out: no base was given." in text_of(analyze_adapter(adapter))
    assert "is left out: it is far." in text_of(analyze_adapter(adapter), "it is far.")
    along = {path: adapter.delta_weight(path) for path in adapter.factors}
    text = text_of(analyze_adapter(adapter, along))
    assert "So the update amplifies directions that the base emphasises more" in text
    assert re.search(r"\| q \| 2 \| 3 \| 4.47 \| 4.47 \| 4.47 \| 4.47 \| [0-9.]+ \| 1 \|", text)


def test_a_comparison_with_itself_is_all_of_it_and_says_what_was_left_out():
    one = analyze_adapter(layered_adapter(layers=1, kinds=("q", "v")), name="one")
    two = analyze_adapter(layered_adapter(layers=1, kinds=("q",)), name="two")
    sections = comparison_sections(
        compare_adapters(one, two),
        {
            "similarity": "s.png",
            "similarity by layer": "l.png",
        },
    )
    text = "\n\n".join(sections)
    random = number(4 / 24)
    assert f"| q | 1 | 1 | 1 | {random} | 1 | {random} | 1 | {random} | 1 |" in text
    assert "only one of the two changes them: `model.layers.0.attn.v`" in text
