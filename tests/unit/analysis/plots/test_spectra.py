"""Curves and cells of one adapter, read back from the figures."""

from dataclasses import replace

import pytest
import torch

from fixtures.figures import labels
from lorakit.analysis import analyze_adapter, report_text
from lorakit.analysis.plots import spectra as spectrum_plots
from tiny_models.adapters import adapter_of, factors_with, layered_adapter, random_factors

PICTURES = ("energy", "spectra", "layers", "similarity 24")


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
