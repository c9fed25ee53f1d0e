"""The picture of quantization errors, read back."""

from itertools import pairwise

from lorakit.analysis.plots import quantization as quantization_plot
from lorakit.quantization.error import SCHEMES, LayerError


def test_no_scheme_hides_another_that_costs_the_same(saved_figures, tmp_path):
    errors = [
        LayerError(path, 8, 8, scheme.name, 0.01 if scheme.bits == 8 else 0.1, 0.2, 4.5)
        for path in ("layers.0.q", "layers.1.q")
        for scheme in SCHEMES
    ]
    quantization_plot.plot_quantization_errors(errors, tmp_path, "mine")
    (axes,) = saved_figures[0].axes
    assert [line.get_label() for line in axes.lines] == [scheme.name for scheme in SCHEMES]
    on_each_other, alone = axes.lines[:-1], axes.lines[-1]
    for under, over in pairwise(on_each_other):
        assert under.get_linewidth() > over.get_linewidth() + 2
        assert under.get_markersize() > over.get_markersize() + 2
    assert alone.get_linewidth() == over.get_linewidth() == 1
