"""The picture of the amplification factors, read back."""

import pytest
import torch

from fixtures.figures import labels
from lorakit.analysis import analyze_adapter
from lorakit.analysis.plots import amplification as amplification_plot
from tiny_models.adapters import layered_adapter


def test_amplification_is_plotted_beside_its_controls(saved_figures, tmp_path):
    adapter = layered_adapter(layers=3)
    weights = {path: torch.randn(24, 24) for path in adapter.factors}
    analysis = analyze_adapter(adapter, weights)
    amplification_plot.plot_amplification(analysis, tmp_path)
    top, bottom = saved_figures[0].axes
    factors = [found.factor for found in analysis.amplifications if found.path.endswith("q_proj")]
    assert top.patches[0].get_height() == pytest.approx(sorted(factors)[1])
    assert sorted(top.lines[0].get_ydata()) == pytest.approx(sorted(factors))
    assert sorted(labels(bottom)) == [
        *("directions of W0 itself", "directions of ΔW", "random directions", "‖ΔW‖ itself"),
    ]
    assert [text.get_text() for text in bottom.get_xticklabels()] == ["q_proj", "v_proj"]
