"""`lorakit tune` and `lorakit study`: what they say, write and refuse."""

import pytest
import yaml
from rich.console import Console

from fixtures.trials import trial_record
from lorakit.cli.views.trials import TrialsView, shown_records, trial_line, values_text
from lorakit.recipes.search_sections import Distribution, SearchConfig

SETTINGS = SearchConfig()


def flat(text):
    return " ".join(text.split())


def search_recipe(path, **sections):
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, **sections}))
    return path


# One trial at a time, so one process imports the libraries.
SHORT = {"max_epochs": 1, "max_concurrent": 1}


def test_a_search_shows_its_trials_and_names_the_best(cli, cls_recipe, tmp_path, machines):
    space = {"training.learning_rate": {"choice": [0.01, 0.02]}, "lora.r": {"choice": [2]}}
    section = {"trials": 2, "metric": "accuracy", "space": space, "asha": None, **SHORT}
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


def test_a_study_shows_its_table_and_what_suffices(cli, cls_recipe, tmp_path, machines):
    section = {"ranks": [2], "target_modules": [["q_lin"]], "seeds": [1, 2], **SHORT}
    result = cli("study", search_recipe(cls_recipe, study=section))
    assert result.exit_code == 0, result.output
    words = flat(result.stdout)
    assert "1 cells, 2 seeds each" in words
    assert "modules r parameters mean loss deviation runs failed" in words
    assert "q_lin 2 256" in words
    assert "Smallest sufficient: r=2 on q_lin (256 parameters in the factors)" in words
    assert f"lorakit train {tmp_path / 'run'}/recommended.yaml" in words


@pytest.mark.parametrize("command", ["tune", "study"])
def test_an_address_without_a_cluster_is_refused_immediately(cli, cls_recipe, command, monkeypatch):
    # Another test may have left a Ray running in this process, which would be used as it is.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    result = cli(command, cls_recipe, "--address", "nowhere")
    assert result.exit_code == 2
    assert "--address: got 'nowhere', expected host:port" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_field_of_the_space_is_reported(cli, cls_recipe, tmp_path):
    result = cli("tune", cls_recipe, "search.space={lora.rank: {choice: [1]}}")
    assert result.exit_code == 2
    assert "Cannot search search.space: unknown key 'lora.rank'. Did you mean 'r'?" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_reported(cli, cls_recipe):
    result = cli("tune", cls_recipe, "search.space={lora.r: {choice: []}}")
    assert result.exit_code == 2
    assert "choice is an empty set" in result.stderr


def test_a_terminal_gets_a_table_that_is_kept_up(monkeypatch):
    screen = Console(force_terminal=True, width=120, height=30, record=True)
    monkeypatch.setattr("lorakit.cli.views.trials.console", lambda: screen)
    with TrialsView() as view:
        view._settings, view._epochs = SETTINGS, 4
        records = [trial_record(1, "finished", [0.5, 0.25]), trial_record(2, "running", [0.75])]
        view("trials", {"records": records, "changed": records[1]})
    words = flat(screen.export_text())
    assert "trial status epoch best loss r target_modules learning_rate" in words
    assert "trial-001 finished 2/4 0.25 4 q, v 0.00123" in words
    assert "trial-002 running 1/4 0.75" in words


def test_a_line_for_each_thing_that_happens():
    starts = trial_line(trial_record(), SETTINGS, 4)
    assert starts == "trial-001 starts: r=4, target_modules=q, v, learning_rate=0.00123"
    assert (
        trial_line(trial_record(losses=[0.5, 0.75]), SETTINGS, 4)
        == "trial-001 epoch 2/4: loss 0.75"
    )
    stopped = trial_line(trial_record(status="stopped", losses=[0.5]), SETTINGS, 4)
    assert stopped == "trial-001 epoch 1/4: loss 0.5, stopped"
    assert (
        trial_line(trial_record(status="failed", error="why"), SETTINGS, 4)
        == "trial-001 failed: why"
    )


def test_a_small_screen_shows_the_running_and_the_newest():
    records = [trial_record(n, "finished") for n in range(1, 8)] + [
        trial_record(8),
        trial_record(9, "waiting"),
    ]
    names = [r.name for r in shown_records(records, 4)]
    assert names == ["trial-006", "trial-007", "trial-008", "trial-009"]
    assert len(shown_records(records, 20)) == 9


def test_distributions_in_words():
    assert values_text(Distribution(log_uniform=(1e-4, 0.1))) == "0.0001 ... 0.1 (log scale)"
    assert values_text(Distribution(same_as="lora.r", times=2)) == "2 times lora.r"
    assert values_text(Distribution(choice=(["q", "v"], "all"))) == "q, v | all"
