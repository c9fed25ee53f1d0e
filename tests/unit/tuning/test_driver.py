"""The directory of a search, and what is refused before any trial runs."""

import json
import shutil
from contextlib import nullcontext

import pytest
from safetensors.torch import load_file, save_file

from fixtures.trials import trial_record
from lorakit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig
from lorakit.training.starting_point import run_lineage
from lorakit.tuning import driver, tune
from lorakit.tuning.driver import open_directory, require_best


@pytest.fixture
def searched(recipe, tmp_path):
    """The recipe of a search that has begun."""
    begun = recipe()
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.yaml").write_text(begun.to_yaml())
    return begun


def test_a_new_search_needs_an_unused_output(recipe, searched, tmp_path):
    with pytest.raises(OutputExistsError, match=r"it holds a search.*--resume"):
        open_directory(searched, "study", resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(OutputExistsError, match="it holds other files"):
        open_directory(recipe("other"), "search", resume=False)
    assert open_directory(recipe("new"), "search", resume=False).existing_kind is None


def test_a_search_that_is_killed_while_its_folders_are_created_is_resumed(recipe, monkeypatch):
    def kill(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "ray_cluster", lambda address: nullcontext([]))
    monkeypatch.setattr(driver, "require_trial_resources", lambda *given: None)
    monkeypatch.setattr(driver, "_plan_trials", lambda *given: (None, 4))
    monkeypatch.setattr(driver, "is_private", kill)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe())
    assert open_directory(recipe(), "search", resume=True).recipe_file.exists()


def test_only_the_same_search_is_resumed(recipe, searched):
    assert open_directory(searched, "search", resume=True).existing_kind == "search"
    more = searched.with_changes({"search.max_concurrent": 2}, "a test")
    open_directory(more, "search", resume=True)
    changed = searched.with_changes({"lora.lora_alpha": 4}, "a test")
    with pytest.raises(CheckpointError, match=r"differs from .*search.yaml in lora.lora_alpha"):
        open_directory(changed, "search", resume=True)
    with pytest.raises(MissingFileError, match=r"there is no study\.yaml in it"):
        open_directory(searched, "study", resume=True)
    with pytest.raises(MissingFileError, match="Nothing to resume"):
        open_directory(recipe("new"), "search", resume=True)


def test_a_search_is_not_resumed_with_other_data_or_another_base(
    recipe, prompt_jsonl, tiny_llama_dir, tmp_path
):
    data = tmp_path / "data.jsonl"
    shutil.copy(prompt_jsonl, data)
    base = tmp_path / "base"
    shutil.copytree(tiny_llama_dir, base)
    begun = recipe(model=str(base), data={"train": str(data), "validation_fraction": 0.25})
    run = RunDirectory(tmp_path / "search" / "trials" / "trial-001")
    run.path.mkdir(parents=True)
    (tmp_path / "search" / "search.yaml").write_text(begun.to_yaml())
    run.recipe_file.write_text(begun.to_yaml())
    lineage = {run_lineage.KEY: run_lineage.lineage_of(begun, None).model_dump(mode="json")}
    run.environment_file.write_text(json.dumps(lineage))
    open_directory(begun, "search", resume=True)

    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[1:]))
    with pytest.raises(CheckpointError, match=r"data.jsonl changed since trial-001 began, so the "):
        open_directory(begun, "search", resume=True)
    data.write_text("".join(lines))
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * one for name, one in weights.items()}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"base changed since trial-001 began"):
        open_directory(begun, "search", resume=True)


def test_a_search_without_validation_examples_is_refused(recipe, prompt_jsonl):
    data = {"train": prompt_jsonl, "validation_fraction": 0}
    with pytest.raises(ConfigError, match=r"there are none.*data.validation_fraction"):
        tune(recipe(data=data))


def test_missing_data_is_reported_immediately(recipe):
    with pytest.raises((MissingFileError, DataError), match=r"data\.train"):
        tune(recipe(data={"train": "./nowhere.csv"}))


def test_without_a_best_trial_the_reasons_are_reported_once():
    settings = SearchConfig()
    failed = [trial_record(n, "failed", error=e) for n, e in enumerate(("a", "b", "a"), 1)]
    with pytest.raises(TrainingError, match="All 3 trials failed: a\n  b There is no best trial"):
        require_best(failed, settings)
    good = trial_record(4, "finished", [0.5])
    assert require_best([*failed, good], settings) is good
