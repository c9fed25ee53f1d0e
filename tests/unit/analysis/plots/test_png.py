import pytest

from lorakit.analysis.plots.png import save_png

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


@pytest.mark.parametrize(
    ("low", "high", "few", "many"),
    [
        (4e-4, 3e-2, ["0.001", "0.01"], ["0.001", "0.01"]),
        (4e-3, 2e-2, ["0.005", "0.01", "0.02"], ["0.005", "0.01", "0.02"]),
        (3e3, 2e6, ["10000", "100000", "1e6"], ["5000", "10000", "1e6"]),
        (1e-9, 1e-1, ["1e-5"], ["1e-5"]),
        (2.0, 1.0, ["1", "2"], ["1", "2"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(tmp_path, low, high, few, many):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4))
    axes = figure.subplots()
    axes.loglog([low, high], [low, high])
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    save_png(figure, tmp_path / "a.png")
    for axis, expected in ((axes.xaxis, few), (axes.yaxis, many)):
        texts = [text.get_text() for text in axis.get_ticklabels(which="both")]
        assert set(expected) <= set(texts)
        assert not any("$" in text for text in texts)


def test_ticks_that_were_set_stay(tmp_path):
    from matplotlib.figure import Figure

    axes = Figure(figsize=(2, 2)).subplots()
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4], ["one", "$4"])
    save_png(axes.figure, tmp_path / "a.png")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["one", "$4"]
