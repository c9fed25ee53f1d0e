import pytest

from lorakit.png import save_png

NAMES = [
    "runs/$x_$",
    "a $\\frac{$ b",
    "$$",
    "price in $",
    "50% \\n",
    "名前",
    "\x1b[31m",
    "[red] _a^b",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_picture_are_plain_text(tmp_path, name):
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    before = rcParams["text.parse_math"]
    figure = Figure(figsize=(2, 1), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], label=f"x{name}")
    axes.set_title(name)
    axes.set_xticks([0, 1], [name, f"{name}{name}"])
    axes.legend(title=name)
    axes.annotate(name, (0, 1))
    figure.suptitle(name)
    save_png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert rcParams["text.parse_math"] == before
