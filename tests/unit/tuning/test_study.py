"""Studies: cells and budgets by arithmetic, the recommendation, and one grid on real Ray."""

import csv
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fixtures.printed import flat
from fixtures.trials import NARROW, WIDE, trial_record
from lorakit.cli.main import app
from lorakit.errors import ConfigError, MissingFileError, OutputExistsError, TargetError
from lorakit.recipes.search_sections import SearchConfig
from lorakit.training import Recipe
from lorakit.tuning import tune
from lorakit.tuning.cells import Cell, CellSpace
from lorakit.tuning.study import (
    best_cell,
    cells_with_results,
    grid_cells,
    smallest_sufficient,
    study,
)


def test_unequal_budgets_have_the_ranks_as_given():
    cells = grid_cells([1, 8], [NARROW, WIDE], equal_budget=False)
    assert [(cell.rank, cell.parameters) for cell in cells] == [
        (1, 100),
        (8, 800),
        (1, 350),
        (8, 2800),
    ]


def test_equal_budgets_give_a_narrow_set_a_higher_rank():
    cells = grid_cells([2, 8], [NARROW, WIDE], equal_budget=True)
    assert [(cell.column, cell.rank) for cell in cells] == [(2, 7), (8, 28), (2, 2), (8, 8)]
    for narrow, wide in zip(cells[:2], cells[2:], strict=True):
        assert narrow.parameters == wide.parameters


def test_the_smallest_within_one_standard_error_suffices():
    best = Cell(8, 8, WIDE, (0.90, 0.92, 0.94))  # mean 0.92, standard error 0.0115
    cells = [
        Cell(1, 1, NARROW, (0.85, 0.85, 0.85)),
        Cell(8, 8, NARROW, (0.909, 0.909, 0.909)),
        Cell(1, 1, WIDE, (0.91, 0.91, 0.91)),
        best,
    ]
    assert best_cell(cells, is_minimized=False) is best
    chosen = smallest_sufficient(cells, best, is_minimized=False)
    assert chosen is cells[2]
    exact = Cell(8, 8, WIDE, (0.92, 0.92, 0.92))
    assert smallest_sufficient([*cells[:3], exact], exact, is_minimized=False) is exact


def test_few_layers_come_before_few_parameters():
    half = replace(WIDE, label="wide; upper half", layers=(2, 3), layer_count=2)
    every = replace(WIDE, label="wide; all layers", layer_count=4)
    best = Cell(8, 8, every, (0.90, 0.92, 0.94))
    small = Cell(1, 1, every, (0.915, 0.915, 0.915))
    upper = Cell(8, 8, half, (0.911, 0.911, 0.911))
    cells = [small, upper, best]
    assert upper.parameters > small.parameters
    assert smallest_sufficient(cells, best, is_minimized=False) is upper


def test_cells_of_upper_layers_train_these_and_are_told_from_all():
    half = replace(WIDE, label="wide; upper half", layers=(2, 3), layer_count=2)
    every = replace(WIDE, label="wide; all layers", layer_count=4)
    space = CellSpace((Cell(1, 1, half), Cell(1, 1, every)), (7,), 2.0)
    upper, whole = (space.trial_values({"run": run}) for run in (0, 1))
    assert upper["lora.layers_to_transform"] == [2, 3]
    assert whole["lora.layers_to_transform"] is None
    assert upper.keys() == set(space.keys) == space.distributions.keys()
    assert [space.cell_of(values) for values in (upper, whole)] == [0, 1]


def test_losses_are_compared_the_other_way_round():
    cells = [Cell(1, 1, WIDE, (2.0, 2.0)), Cell(2, 2, WIDE, (1.0, 1.4)), Cell(4, 4, WIDE, (1.1,))]
    best = best_cell(cells, is_minimized=True)
    assert best is cells[2]
    assert smallest_sufficient(cells, best, is_minimized=True) is best
    assert smallest_sufficient(cells[:2], cells[1], is_minimized=True) is cells[1]


def test_a_cell_whose_runs_failed_is_never_chosen():
    cells = [Cell(1, 1, WIDE, (), 3), Cell(2, 2, WIDE, (1.0,))]
    best = best_cell(cells, is_minimized=True)
    assert smallest_sufficient(cells, best, is_minimized=True) is cells[1]


def test_a_cell_counts_its_runs_and_its_failures():
    space = CellSpace((Cell(1, 1, NARROW), Cell(1, 1, WIDE)), (1, 2), 4.0)
    records = []
    for run, status in enumerate(("finished", "failed", "finished", "finished")):
        losses = [1.0, run / 10] if status == "finished" else []
        record = trial_record(run + 1, status, losses)
        records.append(replace(record, values=space.trial_values({"run": run})))
    narrow, wide = cells_with_results(space, records, SearchConfig())
    assert (narrow.values, narrow.failed) == ((0.0,), 1)
    assert (wide.values, wide.failed) == ((0.2, 0.3), 0)


@pytest.fixture(scope="module")
def studied(machines, tiny_llama_dir, prompt_jsonl, tmp_path_factory):
    """A study of two sets with two seeds: its recipe, result, and what the command printed."""
    folder = tmp_path_factory.mktemp("studies")
    recipe = Recipe.check(
        {
            "model": tiny_llama_dir,
            "task": "CAUSAL_LM",
            "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
            "lora": {"r": 2, "lora_alpha": 8},
            "training": {
                "per_device_train_batch_size": 4,
                "use_cpu": True,
                "learning_rate": 1e-2,
                "max_steps": 1,  # trials run for epochs
            },
            "study": {
                "ranks": [1],
                "target_modules": [["q_proj"], "all-linear"],
                "seeds": [1, 2],
                "max_epochs": 1,
                "max_concurrent": 1,  # one process imports the libraries
            },
            "output": str(folder / "study"),
        },
        "the recipe",
    )
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    shown = CliRunner().invoke(app, ["study", str(path)])
    assert shown.exit_code == 0, shown.output
    return recipe, study(recipe, resume=True), shown.stdout  # nothing is left to run


def test_a_study_trains_every_cell_with_every_seed(studied):
    _, result, _ = studied
    with (result.path / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    finished = {(r["lora.r"], r["lora.target_modules"], r["training.seed"]) for r in rows}
    assert len(finished) == len(rows) == 4
    assert {row["status"] for row in rows} == {"finished"}
    by_label = {cell.target_set.label: cell for cell in result.cells}
    assert len(by_label["q_proj"].values) == len(by_label["all-linear"].values) == 2
    assert by_label["q_proj"].parameters == 2 * (32 + 32)
    for record in result.records:
        assert record.values["lora.lora_alpha"] == 4 * record.values["lora.r"]


def test_the_command_shows_the_table_and_what_suffices(studied):
    _, result, printed = studied
    words = flat(printed)
    assert "2 cells, 2 seeds each" in words
    assert "modules r parameters mean loss deviation runs failed" in words
    assert "q_proj 1 128" in words
    found = result.recommended
    label = found.target_set.label
    assert f"Smallest sufficient: r=1 on {label} ({found.parameters:,} parameters in" in words
    assert f"lorakit train {result.path}/recommended.yaml" in words


def test_a_study_writes_its_table_picture_and_recipe(studied):
    _, result, _ = studied
    page = (result.path / "study.md").read_text(encoding="utf-8")
    cell = next(c for c in result.cells if c.target_set.label == "q_proj")
    assert f"| q_proj | {cell.mean:.4f} ± {cell.deviation:.4f} |" in page
    assert f"r={result.recommended.rank} on {result.recommended.target_set.label}" in page
    assert (result.path / "study.png").read_bytes().startswith(b"\x89PNG")
    found = Recipe.load(result.path / "recommended.yaml")
    assert found.lora.r == result.recommended.rank
    assert found.study is None
    assert found.training["num_train_epochs"] == 1 and "max_steps" not in found.training


@pytest.mark.parametrize("together", [1, 2], ids=["in turn", "in one process"])
def test_depths_are_an_axis_and_the_layers_below_are_kept(together, studied, machines, tmp_path):
    recipe, *_ = studied
    section = {"ranks": [1], "target_modules": ["all-linear"], "layers": ["all", "upper half"]}
    section |= {"seeds": [1], "max_epochs": 2, "max_concurrent": together, "together": together}
    changes = {
        "study": section,
        "frozen_part": {"cache_directory": str(tmp_path / "kept")},
        "output": str(tmp_path / "study"),
    }
    result = study(recipe.with_changes(changes, "a test"))
    assert [record.status for record in result.records] == ["finished"] * 2
    depths = {cell.target_set.layers: cell for cell in result.cells}
    assert {layers: len(cell.values) for layers, cell in depths.items()} == {None: 1, (1,): 1}
    assert 2 * depths[1,].parameters == depths[None].parameters
    assert depths[1,].values != depths[None].values
    (kept,) = (tmp_path / "kept").glob("*.sqlite")
    assert kept.stat().st_size, "of the layer below the upper one"
    upper = next(r for r in result.records if r.values["lora.layers_to_transform"])
    report = (upper.path / "report.md").read_text(encoding="utf-8")
    assert "The 1 of 2 blocks below the first adapted one are computed once" in report
    page = (result.path / "study.md").read_text(encoding="utf-8")
    assert "all-linear; upper half" in page and "all-linear; all layers" in page
    found = Recipe.load(result.path / "recommended.yaml")
    assert found.lora.layers_to_transform == result.recommended.target_set.layers


def test_a_set_that_matches_nothing_is_reported_before_anything_runs(studied, tmp_path):
    recipe, *_ = studied
    study_section = {"target_modules": [["q_porj"]]}
    wrong = recipe.with_changes({"study": study_section, "output": str(tmp_path / "o")}, "a test")
    with pytest.raises(TargetError, match="Did you mean 'q_proj'"):
        study(wrong)


def test_rank_patterns_would_undo_a_study(studied, tmp_path):
    recipe, *_ = studied
    changes = {"lora.rank_pattern": {"q_proj": 3}, "output": str(tmp_path / "o")}
    with pytest.raises(ConfigError, match=r"lora\.rank_pattern"):
        study(recipe.with_changes(changes, "a test"))


def test_a_search_does_not_go_on_with_a_study(studied):
    recipe, result, _ = studied
    with pytest.raises(MissingFileError, match=r"there is no search\.yaml in it"):
        tune(recipe, resume=True)
    with pytest.raises(OutputExistsError, match="it holds a study"):
        tune(recipe)
    assert (result.path / "study.yaml").exists()


def test_a_study_in_which_nothing_was_learnt_says_so():
    from lorakit.analysis.guessing import Reference
    from lorakit.recipes.search_sections import StudyConfig
    from lorakit.tuning.study import nothing_learnt

    settings = StudyConfig(metric="accuracy")
    reference = Reference({"eval_accuracy": 0.2}, "guessing by the classes' shares", 40)
    chance = [Cell(1, 1, NARROW, (0.175, 0.15, 0.2)), Cell(2, 2, NARROW, (), 3)]
    text = nothing_learnt(chance, settings, reference)
    assert text is not None
    assert text.startswith("No cell beats guessing by the classes' shares (accuracy 0.2)")
    learnt = Cell(8, 8, NARROW, (0.7, 0.75, 0.8))
    assert nothing_learnt([*chance, learnt], settings, reference) is None
    wild = Cell(8, 8, NARROW, (0.1, 0.2, 0.9))
    assert nothing_learnt([*chance, wild], settings, reference) is not None
    assert nothing_learnt(chance, settings, None) is None
