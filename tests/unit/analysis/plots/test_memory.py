"""What the picture of a memory plan shows, read back from the figure."""

import pytest

from lorakit.analysis.plots import memory as memory_plot

MB = 10**6
BARS = {
    "LoRA": {"base weights": 14 * MB, "gradients": 2 * MB},
    "QLoRA": {"base weights": 4 * MB},
}


@pytest.fixture
def draw(monkeypatch):
    """Returns a function that draws the bars times a factor, and gives the axes."""
    figures = []
    monkeypatch.setattr(memory_plot, "save_png", lambda figure, path: figures.append(figure))

    def draw(factor, memory_bytes):
        bars = {name: {k: v * factor for k, v in parts.items()} for name, parts in BARS.items()}
        order = ("base weights", "gradients", "batch")
        memory_plot.plot_memory(bars, order, None, "title", memory_bytes)
        return figures[-1].axes[0]

    return draw


def texts(axes):
    return [text.get_text().strip() for text in axes.texts]


@pytest.mark.parametrize(("factor", "unit"), [(1, "MB"), (1000, "GB")])
def test_the_unit_is_that_of_the_longest_bar(draw, factor, unit):
    axes = draw(factor, None)
    assert [patch.get_width() for patch in axes.patches] == [14, 2, 4, 0]
    assert texts(axes) == [f"16 {unit}", f"4 {unit}"]
    assert axes.get_xlabel() == f"memory at the peak of a step ({unit})"


def test_memory_that_is_near_is_a_line(draw):
    axes = draw(1000, 20 * 1000 * MB)
    assert list(axes.lines[0].get_xdata()) == [20, 20]
    assert "20 GB available" in texts(axes)


def test_memory_that_is_far_is_named_and_leaves_the_scale_to_the_bars(draw):
    axes = draw(1, 25_300 * MB)
    assert not axes.lines and axes.get_xlim()[1] < 20
    assert axes.get_xlabel() == "memory at the peak of a step (MB; 25.3 GB available)"


def test_peaks_are_written_above_the_line_of_the_memory(draw):
    axes = draw(1000, 17 * 1000 * MB)
    peaks = [text for text in axes.texts if "available" not in text.get_text()]
    assert all(text.get_zorder() > axes.lines[0].get_zorder() for text in peaks)
    assert all(text.get_path_effects() for text in peaks)
