"""The report of one adapter and of two: its files, tables and sentences."""

import csv
import re

import pytest

from lorakit.analysis import analyze_adapter, compare_adapters, write_report
from lorakit.analysis.report import csv_text
from lorakit.errors import OutputExistsError
from tiny_models.adapters import (
    adapter_of,
    layered_adapter,
    random_factors,
    steep_adapter,
    weights_of,
)

PNG = b"\x89PNG"


@pytest.fixture
def steep():
    return steep_adapter()


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The report of one adapter: its analysis, and the files in their order."""
    steep = steep_adapter()
    analysis = analyze_adapter(steep, weights_of(steep), name="mine")
    return analysis, write_report(tmp_path_factory.mktemp("reports") / "out", analysis)


def test_the_report_of_one_adapter_has_every_picture_it_names(reported):
    _, files = reported
    out = files[0].parent
    assert files[0] == out / "report.md"
    assert [file.name for file in files[1:]] == [
        *("layers.csv", "amplification.png", "energy.png", "layers.png"),
        *("similarity-10.png", "spectra.png"),
    ]
    assert sorted(out.iterdir()) == sorted(files)
    assert list(out.parent.iterdir()) == [out]
    text = files[0].read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert sorted(linked) == sorted(file.name for file in files if file.suffix == ".png")
    for file in files:
        assert file.suffix != ".png" or file.read_bytes().startswith(PNG)


def test_layers_csv_has_every_module_with_full_numbers(reported, steep):
    analysis, files = reported
    rows = rows_of(files[0].parent / "layers.csv")
    assert [row["module"] for row in rows] == list(steep.factors)
    row = rows[1]
    assert (row["adapter"], row["kind"], row["layer"]) == ("mine", "q", "1")
    assert (row["in_features"], row["out_features"], row["r"], row["rank"]) == ("10", "8", "4", "3")
    assert (row["rank_for_0.9"], row["rank_for_0.99"]) == ("2", "3")
    assert float(row["norm"]) == pytest.approx(20**0.5, rel=1e-5)
    found = analysis.amplifications[1]
    assert float(row["amplification_factor"]) == pytest.approx(found.factor, rel=1e-5)
    assert float(row["base_norm_along_update"]) == pytest.approx(found.along_update, rel=1e-5)
    assert float(row["base_norm_along_random"]) == pytest.approx(found.along_random, rel=1e-5)


@pytest.mark.usefixtures("blank_pictures")
def test_without_a_base_the_report_says_why(tmp_path, steep):
    analysis = analyze_adapter(steep)
    files = write_report(tmp_path / "out", analysis, base_note="it is not here.")
    assert "amplification.png" not in [file.name for file in files]
    text = files[0].read_text(encoding="utf-8")
    assert "The amplification factor is left out: it is not here." in text
    assert rows_of(tmp_path / "out" / "layers.csv")[0]["amplification_factor"] == ""


@pytest.mark.usefixtures("blank_pictures")
def test_two_adapters_are_compared_and_each_is_reported(tmp_path):
    first, second = layered_adapter(r=3), layered_adapter(r=5, seed=1)
    one, two = analyze_adapter(first, name="small"), analyze_adapter(second, name="large")
    comparison = compare_adapters(one, two)
    files = write_report(tmp_path / "out", one, comparison)
    names = {file.name for file in files}
    assert {"similarity.png", "similarity-by-layer.png", "similarity.csv"} < names
    assert {"1-energy.png", "2-energy.png", "1-spectra.png", "2-spectra.png"} < names
    text = files[0].read_text(encoding="utf-8")
    assert text.startswith("# small and large, analysed\n")
    assert "\n## small\n" in text and "\n## large\n" in text
    for file in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert file in names
    assert {row["adapter"] for row in rows_of(tmp_path / "out" / "layers.csv")} == {
        "small",
        "large",
    }
    rows = rows_of(tmp_path / "out" / "similarity.csv")
    assert [(row["i"], row["j"]) for row in rows[:6]] == [
        *(("1", "1"), ("1", "4"), ("1", "5")),
        *(("3", "1"), ("3", "4"), ("3", "5")),
    ]
    module = comparison.modules[0]
    assert float(rows[1]["phi_input"]) == pytest.approx(module.inputs[0, 3].item(), rel=1e-5)
    assert float(rows[5]["phi_output"]) == pytest.approx(module.outputs[2, 4].item(), rel=1e-5)
    assert float(rows[5]["phi_A"]) == pytest.approx(module.factor_A[2, 4].item(), rel=1e-5)
    assert float(rows[5]["random_input"]) == pytest.approx(5 / 24, rel=1e-5)


def test_modules_that_never_learnt_are_named_and_plotted_without_complaint(tmp_path):
    A, B = random_factors(2, 8, 8)
    adapter = adapter_of({"layers.0.q": (A, B), "layers.1.q": (A, 0 * B), "layers.0.v": (A, 0 * B)})
    files = write_report(tmp_path / "out", analyze_adapter(adapter, weights_of(adapter)))
    text = files[0].read_text(encoding="utf-8")
    assert "zero in 2 modules, which never learned: `layers.1.q`, `layers.0.v`." in text
    assert "| v | 1 | 2 | 0 | zero | zero | 0 | 0 |" in text


@pytest.mark.parametrize(
    ("layers", "kinds", "r"),
    [
        (1, ["q_proj"], 1),
        (33, ["b", "c"], 2),
        (2, ["a_module_with_quite_a_long_name_of_its_own", *(f"kind_{n}" for n in range(14))], 3),
    ],
)
@pytest.mark.usefixtures("uncoloured_pictures")
def test_few_and_many_modules_are_plotted_without_a_warning(tmp_path, layers, kinds, r):
    first = layered_adapter(layers=layers, kinds=kinds, r=r, width=12)
    second = layered_adapter(layers=layers, kinds=kinds, r=4, width=12, seed=1)
    one = analyze_adapter(first, weights_of(first), name="one")
    two = analyze_adapter(second, weights_of(second), name="two")
    files = write_report(tmp_path / "out", one, compare_adapters(one, two))
    assert len(files) > 8


@pytest.mark.parametrize("occupied", ["file", "directory"])
def test_an_occupied_output_is_left_as_it_is(tmp_path, steep, occupied):
    out = tmp_path / "out"
    if occupied == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    with pytest.raises(
        OutputExistsError, match=r"expected a new or empty directory\. Name another"
    ):
        write_report(out, analyze_adapter(steep))
    assert (out if occupied == "file" else out / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("blank_pictures")
def test_an_empty_directory_is_filled(tmp_path, steep):
    (tmp_path / "out").mkdir()
    assert write_report(tmp_path / "out", analyze_adapter(steep))[0].is_file()


def test_nothing_appears_where_drawing_fails(tmp_path, steep, monkeypatch):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lorakit.analysis.report.plot_spectra", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        write_report(tmp_path / "out", analyze_adapter(steep))
    assert list(tmp_path.iterdir()) == []


def test_unknown_numbers_are_empty_cells():
    assert csv_text([{"a": 1 / 3, "b": None}]) == "a,b\n0.333333,\n"
