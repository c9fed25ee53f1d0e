"""Heat maps of φ, read back from the figures."""

from dataclasses import replace

import pytest
import torch

from lorakit.analysis import analyze_adapter, compare_adapters
from lorakit.analysis.plots import similarity as similarity_plots
from tiny_models.adapters import adapter_of, layered_adapter, random_factors


def test_similarity_has_a_control_beside_each_side_on_one_scale(saved_figures, tmp_path):
    one = analyze_adapter(layered_adapter(r=3), name="one")
    two = analyze_adapter(layered_adapter(r=5, seed=1), name="two")
    comparison = compare_adapters(one, two)
    similarity_plots.plot_similarity(comparison, tmp_path)
    panels, bar = saved_figures[0].axes[:-1], saved_figures[0].axes[-1]
    assert len(panels) == 2 * 4 and "φ" in bar.get_ylabel()
    assert all(panel.images[0].get_clim() == (0, 1) for panel in panels)
    modules = similarity_plots.choose_modules(comparison)
    expected = [
        matrix
        for module in modules
        for matrix in (
            *(module.inputs, module.random_inputs, module.outputs, module.random_outputs),
        )
    ]
    for panel, matrix in zip(panels, expected, strict=True):
        assert panel.images[0].get_array().shape == (3, 5)
        assert panel.images[0].get_array().tolist() == matrix.tolist()


def test_the_kinds_that_changed_most_are_shown_in_full():
    kinds = {"a": 1.0, "b": 9.0, "c": 5.0, "d": 7.0}
    factors = {}
    for number, (kind, scale) in enumerate(kinds.items()):
        for layer in (0, 1, 10):
            A, B = random_factors(2, 8, 8, seed=10 * number + layer)
            factors[f"layers.{layer}.{kind}"] = (A, scale * B)
    one = analyze_adapter(adapter_of(factors), name="one")
    modules = similarity_plots.choose_modules(compare_adapters(one, one))
    assert [module.path for module in modules] == ["layers.1.b", "layers.1.d", "layers.1.c"]


def test_layers_are_compared_kind_by_kind_beside_a_control(saved_figures, tmp_path):
    paths = ["layers.10.q", "layers.2.v", "layers.2.q"]
    factors = {path: random_factors(2, 12, 8, seed=n) for n, path in enumerate(paths)}
    analysis = analyze_adapter(adapter_of(factors))
    (found,) = analysis.layer_similarities
    similarity_plots.plot_layer_similarity(analysis, found, tmp_path)
    measured, control = saved_figures[0].axes[:2]
    order = [2, 0, 1]  # layers.2.q, layers.10.q, layers.2.v
    for axes, phi in ((measured, found.phi), (control, found.random)):
        image = axes.images[0].get_array()
        assert image.mask.tolist() == torch.eye(3, dtype=torch.bool).tolist()
        outside = ~torch.eye(3, dtype=torch.bool)
        assert image.compressed().tolist() == phi[order][:, order][outside].tolist()
    assert [text.get_text() for text in measured.get_yticklabels()] == ["q", "v"]
    assert list(measured.get_yticks()) == [0.5, 2.0]


def test_the_diagonal_does_not_set_the_colours(saved_figures, tmp_path):
    analysis = analyze_adapter(layered_adapter(layers=3, width=64))
    (found,) = analysis.layer_similarities
    similarity_plots.plot_layer_similarity(analysis, found, tmp_path)
    measured, control = saved_figures[0].axes[:2]
    outside = ~torch.eye(6, dtype=torch.bool)
    largest = max(found.phi[outside].max().item(), found.random[outside].max().item())
    assert largest < 0.5
    assert measured.images[0].get_clim() == control.images[0].get_clim() == (0, largest)


def test_modules_without_a_common_direction_can_be_plotted(tmp_path):
    A, B = torch.eye(8)[:1], torch.ones(8, 1)
    analysis = analyze_adapter(adapter_of({"layers.0.q": (A, B), "layers.1.q": (A.roll(1, 1), B)}))
    (found,) = analysis.layer_similarities
    found = replace(found, random=torch.eye(2))
    assert found.largest == pytest.approx(0, abs=1e-12)
    similarity_plots.plot_layer_similarity(analysis, found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("count", "marks"),
    [(1, [1]), (4, [1, 2, 3, 4]), (8, [1, 2, 4, 6, 8]), (64, [1, 16, 32, 48, 64])],
)
def test_marks_on_an_axis_begin_with_1_and_end_with_the_last(count, marks):
    assert similarity_plots._marks(count) == marks
