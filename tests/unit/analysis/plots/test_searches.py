"""Pictures of searches and studies: what is drawn where, and that odd searches can be drawn."""

from itertools import pairwise

import matplotlib.image
import pytest

from lorakit.analysis.plots import searches as search_plots
from lorakit.analysis.plots.searches import PlottedTrial, _axis, plot_search


def trial(name, status, curve, **values):
    return PlottedTrial(name, status, values, tuple(curve))


def test_numbers_of_many_magnitudes_lie_on_a_log_axis():
    axis = _axis("rate", [1e-4, 1e-2, 1e-3])
    assert axis.is_log
    assert [round(axis.place(value), 6) for value in (1e-4, 1e-3, 1e-2)] == [0, 0.5, 1]


def test_numbers_of_one_magnitude_lie_on_a_plain_axis():
    axis = _axis("dropout", [0.1, 0.5])
    assert not axis.is_log
    assert axis.place(0.3) == pytest.approx(0.5)


def test_few_numbers_have_a_tick_each():
    assert [text for _, text in _axis("r", [8, 2, 16, 2]).ticks()] == ["2", "8", "16"]


def test_ticks_never_lie_so_close_that_their_numbers_overlap():
    rates = [0.000485, 0.000844, 0.00724, 0.0173, 0.0204, 0.0216]
    for values in (rates, [0.3, 0.448, 0.45], [1.0, 1.0001]):
        places = [place for place, _ in _axis("rate", values, is_log=True).ticks()]
        assert (places[0], places[-1]) == pytest.approx((0, 1))
        assert min(high - low for low, high in pairwise(places)) >= 0.05


def test_words_lie_apart_and_one_value_lies_in_the_middle():
    axis = _axis("modules", ["all", "q, v", "all"])
    assert [axis.place(word) for word in ("all", "q, v")] == [0.25, 0.75]
    assert _axis("r", [4, 4]).place(4) == 0.5


@pytest.mark.parametrize("is_minimized", [True, False])
def test_three_pictures_are_written(is_minimized, tmp_path):
    trials = [
        trial("a", "finished", [(1, 0.9), (2, 0.5)], r=4, modules="q, v", rate=1e-3),
        trial("b", "stopped", [(1, 7000.0)], r=8, modules="all", rate=1e-1),
        trial("c", "failed", [], r=9, modules="all", rate=1e-2),
    ]
    paths = plot_search(trials, "eval_loss", is_minimized, tmp_path)
    assert len(paths) == 3
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert width > 600 and height > 300


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """Returns a function that draws a search and gives its figures by file name."""
    figures_by_name = {}
    monkeypatch.setattr(
        search_plots, "save_png", lambda figure, path: figures_by_name.update({path.name: figure})
    )

    def draw(trials, **settings):
        plot_search(trials, "eval_loss", True, tmp_path, **settings)
        return figures_by_name

    return draw


SEARCHED = [
    trial("a", "stopped", [(1, 0.3)], r=4, modules="q, v", rate=1e-3),
    trial("b", "finished", [(1, 0.9), (2, 0.5)], r=8, modules="all", rate=2e-3),
]


def test_words_lie_above_the_lines_with_a_white_rim(figures):
    axes = figures(SEARCHED)["parallel_coordinates.png"].axes[0]
    assert axes.texts
    highest = max(line.get_zorder() for line in axes.lines)
    for text in axes.texts:
        assert text.get_zorder() > highest and text.get_path_effects()


def test_a_logarithmic_space_has_logarithmic_axes(figures):
    figures_by_name = figures(SEARCHED, log_keys=("rate",))
    names = [
        text.get_text()
        for text in figures_by_name["parallel_coordinates.png"].axes[0].get_xticklabels()
    ]
    assert names[:3] == ["r", "modules", "rate\n(log scale)"]
    scales = {
        axes.get_xlabel(): axes.get_xscale()
        for axes in figures_by_name["metric_by_parameter.png"].axes
    }
    assert scales == {"r": "linear", "modules": "linear", "rate": "log"}


def test_the_legend_has_the_marker_that_is_plotted(figures):
    (legend,) = figures(SEARCHED)["metric_by_parameter.png"].legends
    markers = {handle.get_label(): handle.get_marker() for handle in legend.legend_handles}
    assert markers == {"ran to its end": "o", "stopped early": "v", "the best": "v"}


def test_a_search_without_an_evaluation_has_no_pictures(tmp_path):
    assert plot_search([trial("a", "failed", [], r=1)], "eval_loss", True, tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_one_trial_of_one_parameter_can_be_plotted(tmp_path):
    assert (
        len(plot_search([trial("a", "finished", [(1, 2.0)], r=1)], "eval_f1", False, tmp_path)) == 3
    )
