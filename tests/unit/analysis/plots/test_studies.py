"""The picture of a study, read back from the figure."""

from lorakit.analysis.plots.studies import PlottedCell, plot_study

CELLS = [
    *(PlottedCell("q, v", rank, 100 * rank, (0.5, 0.6), 0.55, 0.07) for rank in (1, 4, 64)),
    PlottedCell("all", 1, 350, (0.7,), 0.7, 0.0),
]


def test_a_study_is_plotted_with_and_without_a_recommendation(saved_figures, tmp_path):
    for recommended in (CELLS[1], None):
        plot_study(CELLS, recommended, "accuracy", "title", tmp_path)
    for figure, ring in zip(saved_figures, ("smallest sufficient", None), strict=True):
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert [name for name in names if name not in ("q, v", "all")] == [ring] * (
            ring is not None
        )
    for axes, place in zip(saved_figures[0].axes, (4, 400), strict=True):
        ring = axes.collections[-1]
        assert (
            ring.get_offsets().tolist() == [[place, 0.55]]
            and ring.get_label() == "smallest sufficient"
        )


def test_the_ring_is_named(saved_figures, tmp_path):
    plot_study(CELLS, CELLS[3], "accuracy", "title", tmp_path, "best")
    names = [text.get_text() for text in saved_figures[0].legends[0].get_texts()]
    assert "best" in names and "smallest sufficient" not in names


def test_ranks_and_parameters_share_the_means_with_a_dot_for_each_run(saved_figures, tmp_path):
    plot_study(CELLS, None, "accuracy", "title", tmp_path)
    by_rank, by_size = saved_figures[0].axes
    assert by_rank.get_xscale() == by_size.get_xscale() == "log"
    assert [text.get_text() for text in by_rank.get_xticklabels()] == ["1", "4", "64"]
    for axes, places in ((by_rank, [1, 4, 64]), (by_size, [100, 400, 6400])):
        line = axes.containers[0].lines[0]
        assert list(line.get_xdata()) == places and list(line.get_ydata()) == [0.55] * 3
        dots = [dot for group in axes.collections for dot in group.get_offsets().tolist()]
        assert sum(dot in ([places[0], 0.5], [places[0], 0.6]) for dot in dots) == 2
