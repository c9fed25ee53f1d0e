"""What the pictures show: curves, cells and controls, read back from the figures."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lorakit.analysis import analyze_adapter, compare_adapters, report_text
from lorakit.analysis.plots import amplification as amplification_plot
from lorakit.analysis.plots import figures as pictures
from lorakit.analysis.plots import quantization as quantization_plot
from lorakit.analysis.plots import similarity as similarity_plots
from lorakit.analysis.plots import spectra as spectrum_plots
from lorakit.analysis.plots.png import save_png
from lorakit.quantization.error import SCHEMES, LayerError
from tiny_models.adapters import adapter_of, factors_with, layered_adapter, random_factors

PICTURES = ("energy", "spectra", "layers", "similarity 24")


@pytest.fixture
def saved_figures(monkeypatch):
    """Collects figures in place of writing them."""
    figures = []
    for module in (amplification_plot, quantization_plot, similarity_plots, spectrum_plots):
        monkeypatch.setattr(module, "save_png", lambda figure, path: figures.append(figure))
    return figures


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_spectra_have_a_line_for_each_module_and_one_for_the_kind(saved_figures, tmp_path):
    analysis = analyze_adapter(layered_adapter(layers=3), name="mine")
    spectrum_plots.plot_spectra(analysis, tmp_path)
    (axes,) = saved_figures[0].axes
    assert len(axes.lines) == 2 * (3 + 1) and axes.get_yscale() == "log"
    assert labels(axes) == ["q_proj (3)", "v_proj (3)"]
    assert "mine" in axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
    values = torch.stack([update.singular_values for update in analysis.kinds["q_proj"]])
    assert list(axes.lines[3].get_ydata()) == pytest.approx(values.median(0).values.tolist())


def test_energy_reaches_one_and_marks_the_ranks(saved_figures, tmp_path):
    factors, _, _ = factors_with([4.0, 3**0.5, 1.0, 0.0], 10, 8)
    spectrum_plots.plot_energy(analyze_adapter(adapter_of({"m": factors})), tmp_path)
    (axes,) = saved_figures[0].axes
    assert list(axes.lines[1].get_ydata()) == pytest.approx([0, 0.8, 0.95, 1, 1])
    assert [text.get_text() for text in axes.texts] == ["rank 2 keeps 95%", "rank 3 keeps 100%"]
    assert [tuple(line.get_xdata()) for line in axes.lines[2:]] == [(2,), (3,)]


@pytest.mark.parametrize("seed", range(3))
def test_the_notes_on_energy_are_the_heights_of_their_points_and_the_numbers_of_the_report(
    seed, saved_figures, tmp_path
):
    analysis = analyze_adapter(layered_adapter(r=6, seed=seed), energy=0.7)
    spectrum_plots.plot_energy(analysis, tmp_path)
    (axes,) = saved_figures[0].axes
    curve = next(line for line in axes.lines if line.get_label() == "all modules")
    report = "\n".join(
        report_text.adapter_sections(analysis, dict.fromkeys(PICTURES, "p"), "##", "")
    )
    assert len(axes.texts) == len(analysis.shares())
    for note, point in zip(axes.texts, axes.lines[-len(axes.texts) :], strict=True):
        (rank,), (height,) = point.get_xdata(), point.get_ydata()
        assert height == curve.get_ydata()[rank]
        share = report_text.percent(height)
        assert note.get_text() == f"rank {rank} keeps {share}"
        assert f"| {rank} | {share} |" in report


def test_a_rank_that_keeps_every_share_has_one_note(saved_figures, tmp_path):
    spectrum_plots.plot_energy(
        analyze_adapter(adapter_of({"m": random_factors(1, 8, 8)})), tmp_path
    )
    (axes,) = saved_figures[0].axes
    assert [text.get_text() for text in axes.texts] == ["rank 1 keeps 100%"]


@pytest.mark.parametrize("use_dora", [False, True])
def test_norms_say_that_they_leave_the_rows_lengths_out(use_dora, saved_figures, tmp_path):
    adapter = adapter_of({"m": random_factors(2, 8, 8)})
    if use_dora:
        config = adapter.config.model_copy(update={"use_dora": True})
        adapter = replace(adapter, config=config, magnitudes={"m": torch.ones(8)})
    spectrum_plots.plot_layers(analyze_adapter(adapter), tmp_path)
    _, bottom = saved_figures[0].axes[:2]
    assert ("without magnitudes (DoRA)" in bottom.get_title()) == use_dora


def test_layers_are_in_the_order_of_their_numbers(saved_figures, tmp_path):
    factors = {f"layers.{n}.q": random_factors(2, 8, 8, seed=n) for n in (10, 2, 0)}
    analysis = analyze_adapter(adapter_of(factors | {"head": random_factors(2, 8, 8, seed=9)}))
    spectrum_plots.plot_layers(analysis, tmp_path)
    top, bottom = saved_figures[0].axes[:2]
    assert [text.get_text() for text in bottom.get_xticklabels()] == ["0", "2", "10", "none"]
    assert [text.get_text() for text in top.get_yticklabels()] == ["q", "head"]
    cells = bottom.images[0].get_array()
    by_path = {update.path: update.norm for update in analysis.updates}
    assert cells[0, 2] == pytest.approx(by_path["layers.10.q"])
    assert cells[1, 3] == pytest.approx(by_path["head"])
    assert cells.mask.tolist() == [[False, False, False, True], [True, True, True, False]]
    assert len(bottom.texts) == 4  # a number in each cell that has one


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


def test_similarity_has_a_control_beside_each_side_on_one_scale(saved_figures, tmp_path):
    one = analyze_adapter(layered_adapter(r=3), name="one")
    two = analyze_adapter(layered_adapter(r=5, seed=1), name="two")
    comparison = compare_adapters(one, two)
    similarity_plots.plot_similarity(comparison, tmp_path)
    panels, bar = saved_figures[0].axes[:-1], saved_figures[0].axes[-1]
    assert len(panels) == 2 * 4 and "φ" in bar.get_ylabel()
    assert all(panel.images[0].get_clim() == (0, 1) for panel in panels)
    modules = similarity_plots.shown_modules(comparison)
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
    modules = similarity_plots.shown_modules(compare_adapters(one, one))
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


@pytest.mark.parametrize(
    ("count", "marks"),
    [(1, [1]), (4, [1, 2, 3, 4]), (8, [1, 2, 4, 6, 8]), (64, [1, 16, 32, 48, 64])],
)
def test_marks_on_an_axis_begin_with_1_and_end_with_the_last(count, marks):
    assert similarity_plots._marks(count) == marks


def test_more_kinds_than_colours_still_differ():
    looks = pictures.styles([f"kind {n}" for n in range(30)])
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 30


def test_pictures_are_wide_enough_to_be_read_at_800_pixels(tmp_path):
    figure = pictures.new_figure(2)
    figure.subplots().plot([1, 2])
    save_png(figure, tmp_path / "a.png")
    width = int.from_bytes((tmp_path / "a.png").read_bytes()[16:20], "big")
    assert 900 < width < 1200
