"""Searches with real Ray: what they write, what fails beside them, and what they refuse."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fixtures.preferences import PAIRS, preference_recipe
from fixtures.printed import flat
from lorakit.cli.main import app
from lorakit.errors import ClusterError, ConfigError, TrainingError
from lorakit.tuning import tune
from lorakit.tuning.trial import MetricError


def rows_of(result):
    with (result.path / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kill_trial_process():
    """Kill the process of the trial that runs, as the kernel does where memory runs out."""
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for log in session.glob("logs/worker-*.err"):  # Ray names each after its process
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(log.stem.rpartition("-")[2]))
            if "".join(process.cmdline()).startswith("ray::ImplicitFunc"):
                process.kill()


@pytest.fixture(scope="module")
def searched(machines, tiny_llama_dir, prompt_jsonl, tmp_path_factory):
    """A search of three trials, of which the second one's process is killed, and its events."""
    from lorakit.training import Recipe

    recipe = Recipe.check(
        {
            "model": tiny_llama_dir,
            "task": "CAUSAL_LM",
            "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
            "lora": {"lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
            "training": {
                "per_device_train_batch_size": 4,
                "use_cpu": True,
                "eval_on_start": True,
                "max_steps": 1,  # trials run for epochs
            },
            "search": {
                "algorithm": "grid",
                "max_epochs": 4,
                "asha": {"grace_period": 1, "reduction_factor": 2},
                "max_concurrent": 1,
                "space": {
                    "lora.r": {"choice": [4]},
                    "training.learning_rate": {"choice": [2e-2, 1e-5, 1e-6]},
                    "lora.target_modules": {"choice": [["q_proj", "v_proj"]]},
                },
            },
            "output": str(tmp_path_factory.mktemp("searches") / "grid"),
        },
        "the recipe",
    )
    events = []

    def listen(name, payload):
        events.append((name, payload))
        changed = payload.get("changed")
        if changed is not None and (changed.name, changed.status) == ("trial-002", "running"):
            kill_trial_process()

    return recipe, tune(recipe, on_event=listen), events


def test_a_table_tells_what_became_of_every_trial(searched):
    _, result, _ = searched
    best, killed, poor = rows_of(result)
    assert [row["trial"] for row in (best, killed, poor)] == ["trial-001", "trial-002", "trial-003"]
    rates = [float(row["training.learning_rate"]) for row in (best, killed, poor)]
    assert rates == [2e-2, 1e-5, 1e-6]
    assert best["status"] == "finished"
    assert best["epochs"] == best["best_epoch"] == "4"
    assert best["best_eval_loss"] == best["eval_loss"] == str(result.best_value)
    assert best["lora.target_modules"] == "q_proj, v_proj" and best["lora.r"] == "4"
    assert (poor["status"], poor["epochs"]) == ("stopped", "1")
    assert (killed["status"], killed["epochs"]) == ("failed", "0")


def test_a_trial_whose_process_is_killed_fails_and_the_rest_goes_on(searched):
    _, result, _ = searched
    first, killed, after = result.records
    assert killed.error.startswith("Its process was killed; memory may have run out.")
    assert (first.status, after.status) == ("finished", "stopped")
    assert result.best.name == "trial-001"


def test_the_best_recipe_trains_as_it_is(searched):
    from lorakit.training import Recipe, train

    recipe, result, _ = searched
    best = Recipe.load(result.path / "best.yaml")
    assert best.search is None
    assert best.lora.r == 4
    assert best.training["learning_rate"] == 2e-2
    assert best.training["num_train_epochs"] == 4 and "max_steps" not in best.training
    assert best.training["metric_for_best_model"] == "eval_loss"
    assert best.data == recipe.data
    trained = train(best)
    assert trained.run_dir == result.path / "best"
    # On the same rows it is the very run of the trial.
    assert trained.metrics["eval_loss"] == pytest.approx(result.best_value, rel=1e-6)


def test_a_search_tells_of_its_trials_while_they_run(searched):
    _, _, events = searched
    assert events[0][0] == "planned"
    planned = events[0][1]
    assert (planned["trials"], planned["epochs"], planned["train_examples"]) == (3, 4, 18)
    changes = [payload["changed"] for name, payload in events if name == "trials"]
    first = [(r.status, len(r.evaluations)) for r in changes if r.name == "trial-001"]
    assert first == [("running", n) for n in range(5)] + [("finished", 4)]


def test_every_trial_is_a_run_with_curves_and_pictures_beside(searched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result, _ = searched
    finished = next(record for record in result.records if record.status == "finished")
    curves = EventAccumulator(str(finished.path / "tensorboard")).Reload()
    assert {"eval/loss", "best/eval_loss"} <= set(curves.Tags()["scalars"])
    assert (finished.path / "adapter" / "adapter_model.safetensors").is_file()
    for name in ("parallel_coordinates", "metric_by_parameter", "learning_curves"):
        assert (result.path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (result.path / "base").exists(), "the mapped base is deleted at the end"


def test_a_search_that_is_over_gives_its_result_again(searched, machines):
    recipe, result, _ = searched
    changed = []
    again = tune(
        recipe, resume=True, on_event=lambda name, payload: changed.append((name, payload))
    )
    assert again.best.name == result.best.name
    assert again.best_value == result.best_value
    run = {payload["changed"].name for name, payload in changed if name == "trials"}
    assert run == {"trial-002"}, "only failed ones run again"
    assert {record.status for record in again.records} == {"finished", "stopped"}


def test_the_command_runs_tpe_which_learns_from_what_it_tried(recipe, machines, tmp_path):
    search = {
        "algorithm": "tpe",
        "trials": 3,
        "metric": "mean_token_accuracy",
        "max_epochs": 1,
        "sample_fraction": 0.5,
        "asha": None,
        "space": {
            "lora": {"r": {"int_uniform": [1, 4]}, "lora_alpha": {"same_as": "lora.r", "times": 2}},
            "training": {"learning_rate": {"log_uniform": [1e-3, 1e-1]}},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(search=search).to_yaml())
    shown = CliRunner().invoke(app, ["tune", str(path)])
    assert shown.exit_code == 0, shown.output
    words = flat(shown.stdout)
    assert "3 trials of up to 1 epochs" in words
    assert "objective the highest eval_mean_token_accuracy" in words
    assert "trial-001 epoch 1/1: mean token accuracy" in words
    assert "Searched 3 trials in" in words and "3 finished" in words
    for name in ("best.yaml", "trials.csv", "learning_curves.png"):
        assert f"{tmp_path / 'search' / name}" in shown.stdout
        assert (tmp_path / "search" / name).exists()
    assert f"lorakit train {tmp_path}/search/best.yaml" in words

    result = tune(path, resume=True)  # nothing is left to run
    assert [record.name for record in result.records] == ["trial-001", "trial-002", "trial-003"]
    for record in result.records:
        assert record.status == "finished"
        values = record.values
        assert values["lora.lora_alpha"] == 2 * values["lora.r"]
        assert 1e-3 <= values["training.learning_rate"] <= 1e-1
        run = json.loads((record.path / "metrics.jsonl").read_text().splitlines()[0])
        assert run["step"] <= 3, "half of 18 rows are three batches of four"
    accuracies = [r.best_value(result.settings) for r in result.records]
    assert result.best_value == max(accuracies)


def test_a_metric_that_no_trial_reports_ends_the_search(recipe, machines, tmp_path):
    search = {"metric": "f1", "trials": 6}
    changed = []
    message = r"^No trial reports the metric 'eval_f1': the evaluation has eval_loss"
    with pytest.raises(MetricError, match=message):
        tune(recipe(search=search), on_event=lambda *event: changed.append(event))
    begun = {p["changed"].name for name, p in changed if name == "trials"}
    assert len(begun) < 6
    assert not (tmp_path / "search").exists(), "the output is free for a search that is put right"


def test_when_every_trial_fails_the_reasons_are_reported(recipe, machines, tmp_path):
    search = {"space": {"lora.r": {"choice": [999]}}, "trials": 1, "algorithm": "random"}
    made = recipe(search=search)
    with pytest.raises(TrainingError, match=r"All 1 trials failed: The rank is larger"):
        tune(made)
    with (tmp_path / "search" / "trials.csv").open(encoding="utf-8") as file:
        (failed,) = csv.DictReader(file)
    assert (failed["status"], failed["epochs"]) == ("failed", "0")
    assert failed["error"].startswith("The rank is larger than the layer in model.layers.0")


@pytest.mark.parametrize(
    ("objective", "key", "value"), [("dpo", "objective.beta", 0.2), ("reward", "lora.r", 2)]
)
def test_objectives_are_searched(tmp_path, tiny_llama_dir, machines, objective, key, value):
    search = {
        "max_epochs": 2,
        "cpus_per_trial": 1,
        "max_concurrent": 1,
        "trials": 1,
        "metric": "accuracy",
        "space": {key: {"choice": [value]}},
    }
    training = {"use_cpu": True, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    made = preference_recipe(
        tmp_path, tiny_llama_dir, PAIRS, {"type": objective}, training=training
    )
    changes = {"output": str(tmp_path / "run"), "search": search}
    result = tune(made.with_changes(changes, "the test"))
    (trial,) = result.records
    assert trial.status == "finished" and result.best_value is not None
    assert trial.values[key] == value


def test_a_wrong_space_is_refused_before_ray_starts(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'lora.rank'. Did you mean 'r'"):
        tune(recipe(search={"space": {"lora.rank": {"choice": [1]}}}))
    assert not (tmp_path / "search").exists()


def test_more_than_the_machine_has_is_refused_at_once(recipe, machines, tmp_path):
    with pytest.raises(ClusterError, match=r"a trial .*99 CPUs.*those of the cluster: 2 CPUs"):
        tune(recipe(search={"cpus_per_trial": 99}))
    with pytest.raises(ClusterError, match=r"1 CPUs and 0.5 GPUs"):
        tune(recipe("other", search={"gpus_per_trial": 0.5}))
    assert not (tmp_path / "search").exists()
