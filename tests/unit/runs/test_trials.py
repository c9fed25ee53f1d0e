import json

import pytest

from fixtures.written_searches import evaluation, write_search
from lorakit.errors import ConfigError, MissingFileError
from lorakit.recipes.recipe import Recipe
from lorakit.runs.trials import TrialReader, kind_of, recipe_of_best


@pytest.fixture
def search(tmp_path):
    return write_search(tmp_path)


def test_trials_are_read_while_they_run(search):
    reader = TrialReader(search)
    assert reader.read().trials == ()
    write_search(search, ("finished", 4, [0.5, 0.75]), ("running", 8, [0.5]), ("waiting", 16, []))
    table = reader.read()
    assert (table.kind, table.metric, table.is_minimized) == ("search", "eval_accuracy", False)
    assert [trial.status for trial in table.trials] == ["finished", "running", "waiting"]
    assert table.best.name == "trial-001"
    assert table.trials[0].values["lora.r"] == 4
    assert list(table.trials[0].curve.values) == [0.5, 0.75]
    assert table.trials[2].best is None
    assert not table.is_over
    write_search(
        search, ("finished", 4, [0.5, 0.75]), ("finished", 8, [0.5, 0.9]), ("stopped", 16, [0.1])
    )
    (search / "best.yaml").write_text("model: m\n")
    table = reader.read()
    assert table.best.name == "trial-002"
    assert table.is_over
    assert table.best_recipe == search / "best.yaml"


def test_an_epoch_that_is_not_yet_in_the_table_is_shown(search):
    write_search(search, ("running", 4, [0.5]))
    with (search / "trials/trial-001/metrics.jsonl").open("a") as file:
        file.write(json.dumps(evaluation(2, 0.6)) + "\n")
    assert TrialReader(search).read().trials[0].best == 0.6


def test_columns_are_the_keys_that_differ(search):
    write_search(search, ("finished", 4, [0.5]), ("finished", 8, [0.5]))
    assert TrialReader(search).read().keys == ("lora.r",)
    write_search(search, ("finished", 4, [0.5]))
    assert TrialReader(search).read().keys == ("lora.r", "lora.target_modules", "training.seed")


def test_a_failed_trial_keeps_its_error_and_is_never_the_best(search):
    write_search(search, ("failed", 4, [0.9]), ("finished", 8, [0.5]))
    table = TrialReader(search).read()
    assert table.trials[0].error == '<script>no</script>, "so"'
    assert table.best.name == "trial-002"


def test_a_study_is_compared_by_its_metric(tmp_path):
    (tmp_path / "study.yaml").write_text("model: m\nstudy: null\n")
    table = TrialReader(tmp_path).read()
    assert (table.kind, table.metric, table.is_minimized) == ("study", "eval_loss", True)
    assert table.best is None
    assert kind_of(tmp_path) == "study"


def test_a_folder_without_a_search_is_an_error(tmp_path):
    assert kind_of(tmp_path) is None
    with pytest.raises(MissingFileError, match=r"neither search\.yaml nor study\.yaml"):
        TrialReader(tmp_path)


@pytest.mark.parametrize("section", ["{metric: 5}", "[1]", "{metrics: eval_loss}"])
def test_a_damaged_search_is_named(search, section):
    (search / "search.yaml").write_text(f"search: {section}\n")
    with pytest.raises(ConfigError, match=r"search\.yaml"):
        TrialReader(search)


@pytest.mark.parametrize("text", [b"", b"a,b\n1,2\n", b"\xff\n", b'trial,status,epochs\n"x'])
def test_a_damaged_table_is_named(search, text):
    (search / "trials.csv").write_bytes(text)
    table = TrialReader(search).read()
    assert table.trials == () or table.trials[0].status == ""
    if table.problem is not None:
        assert str(search / "trials.csv") in table.problem


@pytest.mark.parametrize("name", ["../..", "..", ".", "", "/"])
def test_a_trial_with_the_name_of_a_path_reads_nothing_outside(search, name):
    for outside in (search.parent, search):
        (outside / "metrics.jsonl").write_text(json.dumps(evaluation(1, 0.5)) + "\n")
    (search / "trials.csv").write_text(f"trial,status,epochs\n{name},finished,1\n")
    trial = TrialReader(search).read().trials[0]
    assert (trial.best, len(trial.curve)) == (None, 0)


def test_the_best_recipe_so_far_has_all_examples(search):
    with pytest.raises(MissingFileError, match="none has been evaluated"):
        recipe_of_best(search)
    write_search(search, ("finished", 4, [0.5]), ("running", 8, [0.9]))
    values = {"model": "m", "task": "SEQ_CLS", "data": {"train": "a.csv"}, "output": "s"}
    searched = Recipe.check(values | {"search": {"metric": "accuracy"}}, "the recipe")
    (search / "search.yaml").write_text(searched.to_yaml())
    changes = {"lora.r": 8, "data.max_train_rows": 5, "evaluation.compare_with_base": False}
    trial = searched.with_changes(changes | {"search": None, "output": "t"}, "the trial")
    (search / "trials/trial-002/recipe.yaml").write_text(trial.to_yaml())
    (search / "trials/trial-002/environment.json").write_text("{}")
    found = recipe_of_best(search)
    assert found == searched.with_changes({"lora.r": 8, "search": None}, "the recipe")
    (search / "best.yaml").write_text(trial.to_yaml())
    assert recipe_of_best(search) == trial
