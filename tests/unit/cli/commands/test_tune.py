"""`lorakit tune`: what it says, writes and refuses."""

import yaml

from fixtures.printed import flat


def search_recipe(path, **sections):
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, **sections}))
    return path


def test_a_search_shows_its_trials_and_names_the_best(cli, cls_recipe, tmp_path, machines):
    space = {"training.learning_rate": {"choice": [0.01, 0.02]}, "lora.r": {"choice": [2]}}
    section = {"trials": 2, "metric": "accuracy", "space": space, "asha": None}
    section |= {"max_epochs": 1, "max_concurrent": 1}  # one process imports the libraries
    result = cli("tune", search_recipe(cls_recipe, search=section))
    assert result.exit_code == 0, result.output
    words = flat(result.stdout)
    assert "2 trials of up to 1 epochs" in words
    assert "objective the highest eval_accuracy" in words
    assert "training.learning_rate 0.01 | 0.02" in words
    assert "trial-001 epoch 1/1: accuracy" in words
    assert "Searched 2 trials in" in words and "2 finished" in words
    run = tmp_path / "run"
    for name in ("best.yaml", "trials.csv", "learning_curves.png"):
        assert f"{run / name}" in result.stdout
        assert (run / name).exists()
    assert f"lorakit train {run}/best.yaml" in words


def test_an_empty_set_is_reported(cli, cls_recipe):
    result = cli("tune", cls_recipe, "search.space={lora.r: {choice: []}}")
    assert result.exit_code == 2
    assert "choice is an empty set" in result.stderr


def test_an_unknown_field_of_the_space_is_reported(cli, cls_recipe, tmp_path):
    result = cli("tune", cls_recipe, "search.space={lora.rank: {choice: [1]}}")
    assert result.exit_code == 2
    assert "Cannot search search.space: unknown key 'lora.rank'. Did you mean 'r'?" in result.stderr
    assert not (tmp_path / "run").exists()
