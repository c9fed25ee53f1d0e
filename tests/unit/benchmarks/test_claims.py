"""The claims' figures that need no training, and the page."""

import dataclasses
import re

import pytest
import torch
from benchmarks.claims import BENCHMARK, arithmetic, counts, directions
from benchmarks.claims.__main__ import main, run_sections
from benchmarks.claims.evidence import (
    AGREES,
    DIFFERS,
    MISSING,
    SPREAD,
    Evidence,
    Ours,
    ours,
    verdict,
)
from benchmarks.claims.page import PAGE_NAME, page_text, write_page
from benchmarks.claims.plans import plans, recipe_of
from benchmarks.claims.published import CLAIMS, FIGURES, Published
from benchmarks.claims.remarks import REMARKS
from benchmarks.claims.shapes import config_folder
from benchmarks.options import parse
from benchmarks.page import DOCS
from benchmarks.results import ROOT, read_rows, row

from claims_runs import invented_runs
from invented_rows import ORIGIN, invented_rows

COMPUTED = ("C1", "C2", "C3", "C4", "C15", "C10", "C13", "C14", "C16")
UNPUBLISHED = (
    ("C5", "the model"),
    ("C9", directions.TOP_UPDATE),
    ("C9", directions.TOP_CHANCE),
    ("C9", directions.INSIDE),
    ("C9", directions.INSIDE_CHANCE),
    ("C11", "QLoRA, trained"),
    ("C11", "rank on every linear layer at 0.2 %"),
    ("C12", "the model"),
)
"""Rows that remarks want besides those with a published figure."""
ROUNDED = {("C3", "adapter in 16 bits, qv, r=4"), ("C3", "model / adapter")}
"""Where the paper rounds by more than a hundredth."""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """All that is computed, in full size."""
    folder = tmp_path_factory.mktemp("claims")
    options = parse("claims", "", ["--output", str(folder)])
    rows = [*counts.count(options), *arithmetic.compute(options)]
    assert [one.key() for one in read_rows([BENCHMARK], folder)] == [one.key() for one in rows]
    return Evidence.read(folder)


def invented():
    """Return evidence in which every published figure has one of ours beside it."""
    rows = invented_rows()
    for figure in FIGURES:
        common = {"benchmark": BENCHMARK, "measure": figure.what, "variant": figure.claim}
        common |= {"shape": "a model", "unit": figure.unit}
        rows.append(row(ORIGIN, [figure.value or 0.0], **common))
    for claim, what in UNPUBLISHED:
        common = {"benchmark": BENCHMARK, "measure": what, "variant": claim, "unit": ""}
        rows.append(row(ORIGIN, [2.0, 4.0], shape="a model", **common))
    return Evidence(tuple(rows), tuple(invented_runs()))


def cells_of(page, *beginning):
    start = "| " + " | ".join(beginning) + " |"
    [line] = [line for line in page.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_computed_is_what_was_published(computed):
    figures = [figure for figure in FIGURES if figure.claim in COMPUTED]
    assert len(figures) >= 30
    for figure in figures:
        found = ours(figure, computed)
        expected = DIFFERS if (figure.claim, figure.what) in ROUNDED else AGREES
        assert verdict(figure, found) == expected, (figure, found)


def test_counts_are_exact_in_the_file(computed):
    assert computed.value("C2", "all, as PEFT counts") == 67_694_596
    assert computed.value("C3", "qkvo, r=64") == 96 * 4 * 2 * 12_288 * 64
    assert computed.value("C3", "model in 16 bits, qv, r=4") == 2 * 174_604_283_904


def test_a_gradient_that_is_off_is_seen(tmp_path, monkeypatch):
    options = parse("claims", "", ["--quick", "--output", str(tmp_path)])
    true = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, g: true(self, g * (1 + 1e-6)))
    errors = {one.measure: one.p50 for one in arithmetic._gradients(options)}
    assert errors["∂L/∂A"] == pytest.approx(1e-6, rel=1e-3)
    assert errors["∂L/∂B"] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("relation", "value", "found", "expected"),
    [
        ("=", 100.0, Ours(101.0), AGREES),
        ("=", 100.0, Ours(102.0), DIFFERS),
        ("=", 100.0, Ours(102.0, 99.0, 105.0), SPREAD),
        ("=", 100.0, None, MISSING),
        ("≤", 100.0, Ours(50.0), AGREES),
        ("≤", 100.0, Ours(150.0), DIFFERS),
        ("≥", 0.2, Ours(-0.5), DIFFERS),
        ("≥", 0.2, Ours(-0.5, -1.0, 1.0), SPREAD),
        ("≥", -0.4, Ours(-0.3), AGREES),
        ("same sign", 0.4, Ours(3.0), AGREES),
        ("same sign", 0.4, Ours(-0.1, -0.2, -0.05), DIFFERS),
        ("same sign", 0.4, Ours(-0.1, -0.2, 0.1), SPREAD),
    ],
)
def test_a_verdict_goes_by_the_relation(relation, value, found, expected):
    assert verdict(Published("C1", "x", value, "", relation), found) == expected


def test_every_claim_has_a_line_and_every_figure_stands_in_it():
    names = [claim.name for claim in CLAIMS]
    assert names == [f"C{number}" for number in range(1, 17)]
    assert {figure.claim for figure in FIGURES} == set(names)
    assert len({(figure.claim, figure.what) for figure in FIGURES}) == len(FIGURES)
    page = page_text(invented())
    for claim in CLAIMS:
        assert claim.text in page
        for command in claim.command.split("; "):
            assert f"`{command}`" in page
    assert MISSING not in page
    assert "Not measured yet" not in page


def test_the_page_says_what_the_rows_say():
    evidence = invented()
    page = page_text(evidence)
    assert cells_of(page, "C2", "trained")[-3:] == ["739,586 parameters", "a model", AGREES]
    # The invented step takes 1.1 of the limit's time where full fine-tuning takes 1.5.
    saved = cells_of(page, "C6", "time saved")
    assert saved[2:4] == ["24.6 %", "25.9 % (25.3 to 28.4)"]
    assert saved[-2].startswith("llama-69m, 4 x 256, float32, r=8, Some CPU")
    assert cells_of(page, "C7", "unmerged, 1 x 128")[2:4] == [
        "at most 30.3 %",
        "9.1 % (8.0 to 9.1)",
    ]
    half = [
        dataclasses.replace(one, p50=one.p50 / 2)
        if (one.variant, one.measure) == ("C13", "all, double quantization")
        else one
        for one in evidence.rows
    ]
    changed = page_text(dataclasses.replace(evidence, rows=tuple(half)))
    assert cells_of(changed, "C13", "all, double quantization")[-1] == DIFFERS
    assert cells_of(page, "C13", "all, double quantization")[-1] == AGREES


def test_what_differs_is_explained():
    rows = [
        dataclasses.replace(one, p50=one.p50 * 0.6) if one.benchmark == BENCHMARK else one
        for one in invented().rows
    ]
    page = page_text(Evidence(tuple(rows), tuple(invented_runs())))
    remarked = set(re.findall(r"^- \*\*(C\d+)\.\*\*", page, flags=re.MULTILINE))
    assert {"C3", "C5", "C6", "C7", "C8", "C9", "C11", "C12"} <= remarked <= set(REMARKS)
    assert "24.6% less time, which is +32.6% throughput" in page
    assert "for 4 directions and themselves that is 0.25" in page


def test_without_rows_the_page_says_so(tmp_path):
    page = write_page(tmp_path, tmp_path / "docs").read_text(encoding="utf-8")
    assert "Nothing was measured yet: `make claims` does it." in page
    assert page.count("Not measured yet: `python -m benchmarks.claims quality`.") == 2
    for claim in CLAIMS:
        assert cells_of(page, claim.name, f"{claim.text} *{claim.source}*")[-1] == MISSING


def test_the_page_in_docs_is_what_the_rows_say():
    page = (DOCS / PAGE_NAME).read_text(encoding="utf-8")
    stale = "docs/claims.md is stale: python -m benchmarks.claims --page"
    assert page == page_text(Evidence.read()), stale


def test_what_differs_in_docs_is_explained_there():
    evidence = Evidence.read()
    differing = {f.claim for f in FIGURES if verdict(f, ours(f, evidence)) == DIFFERS}
    for claim in differing:
        assert REMARKS[claim](evidence), f"{claim} differs, and nothing says why"


def test_a_section_that_fails_is_named_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    def fail(options):
        raise RuntimeError("no such thing")

    monkeypatch.setattr("benchmarks.claims.__main__.RUN", {"plans": fail, "counts": list.copy})
    monkeypatch.setitem(run_sections.__globals__["RUN"], "counts", lambda options: None)
    given = ["--quick", "--output", str(tmp_path)]
    assert main(["plans", "counts", *given]) == 1
    printed = capsys.readouterr()
    assert "Failed: plans" in printed.err
    assert "== counts" in printed.out
    assert (tmp_path / PAGE_NAME).exists()
    assert main(["counts", *given]) == 0


def test_the_page_alone_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.claims.__main__.run_sections", None)
    assert main(["--page", "--output", str(tmp_path)]) == 0
    assert (tmp_path / PAGE_NAME).exists()


def test_a_section_that_nobody_knows_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["qualty"])
    assert "no section is called 'qualty'; sections: counts, arithmetic" in capsys.readouterr().err


def test_what_is_planned_is_a_recipe_that_trains():
    options = parse("claims", "", ["--quick", "--output", str(ROOT)])
    for one in plans(options):
        with config_folder(one.config) as folder:
            recipe = recipe_of(one, str(folder))
        assert (recipe.quantization is not None) == one.is_quantized
        assert recipe.training["activation_checkpointing"] is one.is_checkpointed
        assert recipe.training["per_device_train_batch_size"] == 1
        assert recipe.data.max_length == 512


def test_the_makefile_runs_the_claims():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nclaims: $(READY)\n\t$(BIN)/python -m benchmarks.claims $(OPTIONS)\n" in text
    assert re.search(r"^\.PHONY:.* claims\b", text, flags=re.MULTILINE)
