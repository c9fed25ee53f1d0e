"""The trained models behind the claims: which are run, which are not again, and their tables."""

import dataclasses
import re
from functools import partial

import pytest
from benchmarks.claims import directions, quality
from benchmarks.claims.accuracy import QUICKSTART, cells, compared_runs, gaps, quickstart_gap
from benchmarks.claims.evidence import FULL_KIND, Evidence, lora, ours
from benchmarks.claims.page import page_text
from benchmarks.claims.published import FIGURES
from benchmarks.claims.quality_runs import (
    ALL_LINEAR,
    ATTENTION,
    EQUAL_BUDGET,
    FILE,
    FULL,
    LORA,
    RANKS,
    SEEDS,
    Grid,
    append_run,
    best_rate,
    read_runs,
)
from benchmarks.claims.quality_tables import budget_table, rank_table, search_table, setting_text
from benchmarks.options import parse
from benchmarks.results import RESULTS

from claims_runs import RATES, invented_run, invented_runs

RUNS = invented_runs()


def options_for(folder):
    return parse("claims", "", ["--quick", "--output", str(folder)])


def line_of(text, name):
    [line] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def figure(what):
    [found] = [one for one in FIGURES if (one.claim, one.what) == ("C8", what)]
    return ours(found, Evidence((), tuple(RUNS)))


def test_the_grid_is_what_the_claims_ask_for():
    wanted = Grid().of_seed(RATES, 1)
    kinds = {(one.method, one.r, one.targets) for one in wanted}
    expected = {FULL_KIND, *(lora(r) for r in RANKS)}
    expected |= {lora(r, targets) for r, targets in EQUAL_BUDGET}
    assert kinds == expected
    assert len(wanted) == len(kinds) == 13
    assert {one.learning_rate for one in wanted if one.method == LORA} == {RATES[LORA]}


def test_equal_budgets_are_equal():
    sizes = {"q_proj": 512, "k_proj": 384, "v_proj": 384, "o_proj": 512}
    budgets = {
        5 * r * sum(sizes[target] for target in targets)
        for r, targets in EQUAL_BUDGET
        if targets != ALL_LINEAR
    }
    assert budgets == {53_760}
    [r] = [r for r, targets in EQUAL_BUDGET if targets == ALL_LINEAR]
    assert 22_400 * r < 53_760 < 22_400 * (r + 1)


def test_runs_come_back_from_the_file_as_they_went(tmp_path):
    for run in RUNS[:3]:
        append_run(run, tmp_path)
    newer = dataclasses.replace(RUNS[0], accuracy=0.5)
    append_run(newer, tmp_path)
    assert read_runs(tmp_path) == [newer, *RUNS[1:3]]
    (tmp_path / FILE).write_text("method,colour\n")
    with pytest.raises(ValueError, match=r"claims_quality\.csv has other columns"):
        read_runs(tmp_path)


def test_the_learning_rate_is_that_of_the_best_searched_run():
    searched = Grid().searches(FULL)
    accuracies = dict(zip(searched, (0.7, 0.8, 0.8), strict=True))
    runs = [invented_run(wanted, accuracy) for wanted, accuracy in accuracies.items()]
    assert best_rate(runs, searched) == 1e-3
    assert best_rate(runs[:2], searched) is None


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    made = []

    def run_one(wanted, files, grid, options):
        made.append(wanted)
        if len(made) == stop_at:
            raise KeyboardInterrupt
        return invented_run(wanted, 0.5)

    monkeypatch.setattr(quality, "run_one", run_one)
    monkeypatch.setattr(quality, "write_docstrings", lambda *given, **named: None)
    monkeypatch.setattr(quality, "QUICK_GRID", Grid(seeds=(1, 2)))
    stop_at = 10
    with pytest.raises(KeyboardInterrupt):
        quality.run_grid(options_for(tmp_path))
    interrupted = made.pop()
    stop_at = None
    quality.run_grid(options_for(tmp_path))
    assert made.count(interrupted) == 1
    assert len(made) == len(set(made)) == 4 + 13 + 13
    assert {run.wanted for run in read_runs(tmp_path)} == set(made)
    quality.run_grid(options_for(tmp_path))
    assert len(made) == 30


def test_a_quick_grid_trains_and_its_adapters_can_be_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "ANALYSED_RANKS", (1,))
    monkeypatch.setattr(directions, "AMPLIFIED", (1,))
    sources = tmp_path / "sources"  # Python's have thousands of docstrings
    for package in "abcdefghij":
        (sources / package).mkdir(parents=True)
        for module in ("__init__", *"klmnop"):
            text = f"The module {module} of the package {package}."
            (sources / package / f"{module}.py").write_text(f'"""{text}"""')
    monkeypatch.setattr(
        quality, "write_docstrings", partial(quality.write_docstrings, stdlib=sources)
    )
    runs = quality.run_grid(options_for(tmp_path))
    assert [(run.wanted.method, run.wanted.r, run.wanted.targets) for run in runs] == [
        FULL_KIND,
        lora(1),
        lora(1, ("q_proj",)),
    ]
    full, every, query = runs
    assert full.trained_parameters > 4_000_000
    assert (every.factor_parameters, query.factor_parameters) == (22_400, 2_560)
    assert all(0 < run.accuracy < 1 and run.wall_s > 0 for run in runs)
    [row] = directions.compare(options_for(tmp_path))
    assert (row.measure, row.rounds) == (directions.amplification_name(1), 10)
    assert row.p50 > 0
    page = page_text(Evidence.read(tmp_path))
    assert line_of(rank_table(Evidence.read(tmp_path)), "LoRA, r=1")[1] == "24,960"
    assert "30 training examples, 10 held out, 1 epochs, seeds 1." in page


def test_adapters_that_are_not_kept_are_named(tmp_path, capsys):
    append_run(RUNS[4], tmp_path)
    assert RUNS[4].wanted.r == 8
    assert directions.compare(options_for(tmp_path)) == []
    assert "without r8-all-linear-lr0.002-seed1: its adapter is not kept" in capsys.readouterr().out


def test_only_runs_at_the_usual_learning_rate_are_compared():
    kept = compared_runs(RUNS)
    assert {run.wanted.learning_rate for run in kept} == {1e-3, 2e-3}
    assert all(len(cell.runs) == len(SEEDS) for cell in cells(kept).values())
    longer = [
        dataclasses.replace(run, wanted=dataclasses.replace(run.wanted, epochs=9))
        for run in RUNS[-2:]
    ]
    assert compared_runs([*RUNS, *longer]) == longer


def test_gaps_are_taken_seed_by_seed():
    found = cells(compared_runs(RUNS))
    assert gaps(found[lora(8)], found[FULL_KIND]) == pytest.approx([-4.5] * 3)
    del found[FULL_KIND].runs[2]
    assert len(gaps(found[lora(8)], found[FULL_KIND])) == 2


def test_figures_of_the_runs():
    assert figure("LoRA r=8 on every linear layer against full").value == pytest.approx(-4.5)
    lowest = figure("r=1 against the best rank")
    assert lowest.value == pytest.approx(100 * (1 - 64) / 1600)
    # v and k have the highest rank of the single matrices, and so the highest made-up accuracy.
    all_four = figure("q + k + v + o against the best single matrix")
    assert all_four.value == pytest.approx(100 * (6 - 28) / 1600)
    assert all_four.where == "quickstart base, 3 seeds"


def test_tables_say_what_the_runs_say():
    evidence = Evidence((), tuple(RUNS))
    ranks = rank_table(evidence)
    assert line_of(ranks, "full fine-tuning")[1:4] == ["4,494,592", "0.800 ± 0.010", ""]
    assert line_of(ranks, "LoRA, r=64")[1:4] == [
        "1,436,160",
        "0.790 ± 0.010",
        "-1.0 (-1.0 to -1.0)",
    ]
    budget = budget_table(evidence)
    assert line_of(budget, "q + v")[-1] == "73.7 / 91.3 (r=4)"
    assert line_of(budget, "q + k + v + o")[1] == "6"
    assert line_of(budget, "every linear layer")[-1] == ""
    searched = search_table(RUNS)
    assert len(re.findall(r"^\| LoRA, r=8 \|", searched, flags=re.MULTILINE)) == 3
    assert "| full | 0.001 | 0.790 |" in searched
    setting = setting_text(RUNS)
    assert "1,350 training examples, 480 held out, 3 epochs, seeds 1, 2, 3." in setting


def test_a_deviation_of_nothing_is_explained():
    same = [dataclasses.replace(run, accuracy=0.5) for run in RUNS]
    note = "A deviation of 0 means equal counts"
    assert note in setting_text(same)
    assert note not in setting_text(RUNS)


def test_a_worse_lora_is_called_worse():
    page = page_text(Evidence((), tuple(RUNS)))
    assert "No rank reaches full fine-tuning here." in page
    better = [
        dataclasses.replace(run, accuracy=run.accuracy - 0.2 * (run.wanted.method == FULL))
        for run in RUNS
    ]
    assert "No rank reaches" not in page_text(Evidence((), tuple(better)))


def test_the_quickstarts_own_gap_is_reported(tmp_path):
    assert quickstart_gap(tmp_path) is None
    lines = ["seed,method,accuracy", "1,LoRA,0.7", "1,LoRA,0.8", "1,full fine-tuning,0.85"]
    lines += ["2,LoRA,0.9", "2,full fine-tuning,0.87", "3,LoRA,0.1"]
    (tmp_path / QUICKSTART).write_text("\n".join(lines))
    gap = quickstart_gap(tmp_path)
    assert gap == pytest.approx((-5 + 3) / 2)
    page = page_text(Evidence((), tuple(RUNS), gap))
    assert "longer run (r=16, 5 epochs, more examples) has -1.0 points." in page


def test_the_runs_that_are_kept_have_the_grid_that_runs():
    """Rows of another length would never be joined by new ones."""
    runs = read_runs(RESULTS)
    grid = Grid()
    assert ATTENTION in {targets for _, targets in grid.equal_budget}
    for run in compared_runs(runs):
        assert (run.wanted.epochs, run.wanted.train_examples) == (grid.epochs, grid.train_examples)
