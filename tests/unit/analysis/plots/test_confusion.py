"""What confusion.png shows, read back from the figure."""

import numpy as np
import pytest

from lorakit.analysis.plots import confusion as confusion_plot
from lorakit.analysis.plots.confusion import plot_confusion
from lorakit.analysis.plots.png import save_png


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Returns a function that draws counts and gives the axes and the colour bar's."""
    figures = []
    monkeypatch.setattr(confusion_plot, "save_png", lambda figure, path: figures.append(figure))

    def draw(counts, labels):
        plot_confusion(np.array(counts), labels, tmp_path / "confusion.png", "run")
        return figures[-1].axes

    return draw


def test_cells_have_the_numbers_and_the_shares_of_their_rows(drawn):
    axes, bar = drawn([[30, 10], [0, 1_000]], ["no", "yes"])
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    assert [text.get_text() for text in axes.texts] == ["30", "10", "0", "1,000"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["no", "yes"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["no", "yes"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "expected class")
    assert bar.get_ylabel() == "share of the expected class"


def test_a_class_without_examples_and_a_long_name(drawn):
    axes, _ = drawn([[0, 0], [1, 1]], ["a" * 40, "b"])
    assert axes.images[0].get_array().tolist() == [[0, 0], [0.5, 0.5]]
    assert axes.get_yticklabels()[0].get_text() == "a" * 23 + "…"


def test_many_classes_have_colours_only(drawn):
    axes, _ = drawn(np.eye(30, dtype=int), [f"class {n}" for n in range(30)])
    assert not axes.texts and axes.images[0].get_array().shape == (30, 30)


def test_names_are_plain_text(monkeypatch, tmp_path):
    monkeypatch.setattr(confusion_plot, "save_png", save_png)
    plot_confusion(np.eye(2, dtype=int), ["$x", "\x1b[31m"], tmp_path / "confusion.png", "run")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
