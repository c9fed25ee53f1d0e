"""Size and colours that the pictures share."""

from lorakit.analysis.plots import figures as pictures
from lorakit.analysis.plots.png import save_png


def test_more_kinds_than_colours_still_differ():
    looks = pictures.styles([f"kind {n}" for n in range(30)])
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 30


def test_pictures_are_wide_enough_to_be_read_at_800_pixels(tmp_path):
    figure = pictures.new_figure(2)
    figure.subplots().plot([1, 2])
    save_png(figure, tmp_path / "a.png")
    width = int.from_bytes((tmp_path / "a.png").read_bytes()[16:20], "big")
    assert 900 < width < 1200
