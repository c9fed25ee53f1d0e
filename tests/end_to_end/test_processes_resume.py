"""Two processes, of which one is killed or which are stopped, end with the bits of never having."""

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launched import metric_rows, train_all, write_recipe
from lorakit.errors import CheckpointError
from lorakit.recipes import checkpoints
from lorakit.training import Recipe, RunDirectory, train

SHARDED = {"straight": False, "killed": False, "sharded": True, "stopped": True}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, tiny_distilbert_dir, cls_csv):
    folder = tmp_path_factory.mktemp("resumed")
    return {
        name: write_recipe(
            folder / f"{name}.yaml",
            model=tiny_distilbert_dir,
            task="SEQ_CLS",
            data={"train": cls_csv, "validation_fraction": 0.25},
            lora={"r": 4, "lora_dropout": 0.2},
            training={
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 2,
                "eval_strategy": "steps",
                "eval_steps": 3,
                "logging_steps": 2,
                "learning_rate": 5e-3,
                "use_cpu": True,
                # Else the order is drawn from the very numbers that dropout takes.
                "train_sampling_strategy": "random" if is_sharded else "group_by_length",
                "accelerator_config": {"use_seedable_sampler": not is_sharded},
                **({"fsdp": True} if is_sharded else {}),
            },
        )
        for name, is_sharded in SHARDED.items()
    }


@pytest.fixture(scope="module")
def killed(recipes):
    """Kill one of two processes; the other is ended, as a launcher does."""
    recipe = recipes["killed"]
    (first, second), _ = train_all([(recipe, "kill")], recipe.parent)
    assert second.returncode == -signal.SIGKILL and first.returncode != 0, second.stderr
    run = RunDirectory.open(recipe.with_suffix(""))
    assert checkpoints.newest_complete(run.path).name == "checkpoint-3"
    return run


@pytest.fixture(scope="module")
def seen(recipes, killed):
    """Train all of them to the end, in one launch."""
    jobs = [("straight", "start"), ("killed", "resume"), ("sharded", "start")]
    jobs += [("stopped", "ask"), ("stopped", "resume"), ("straight", "fail")]
    folder = recipes["straight"].parent
    ended, seen = train_all([(recipes[name], how) for name, how in jobs], folder)
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    return seen


def test_another_number_of_processes_cannot_go_on(recipes, killed):
    with pytest.raises(CheckpointError) as caught:
        train(Recipe.load(recipes["killed"]), resume=True)
    assert str(caught.value) == (
        f"Cannot resume {killed.path}: got 1 process, expected 2 as at its start, because "
        "batches and random numbers depend on it. Start 2, or train under another `output`."
    )


@pytest.mark.parametrize(("one", "other"), [("straight", "killed"), ("sharded", "stopped")])
def test_a_resumed_run_has_the_same_bits(one, other, recipes, seen):
    runs = [recipes[name].with_suffix("") for name in (one, other)]
    straight, resumed = (load_file(run / "adapter/adapter_model.safetensors") for run in runs)
    assert straight.keys() == resumed.keys()
    assert all(tensor.equal(resumed[name]) for name, tensor in straight.items())
    assert metric_rows(runs[1]) == metric_rows(runs[0])
    random_states = sorted(path.name for path in runs[1].glob("checkpoint-*/rng_state_*.pth"))
    assert random_states == sorted(2 * ["rng_state_0.pth", "rng_state_1.pth"])


def test_what_one_process_is_asked_all_do_after_the_same_step(seen):
    assert [process["stopped_at"] for process in seen] == ["checkpoint-4", "checkpoint-4"]


def test_each_process_drops_something_else(seen):
    first, second = (set(process["seeds"]) for process in seen)
    assert len(first) > 20 and len(second) > 20
    assert not first & second


def test_an_occupied_output_is_one_error_in_all_processes_and_printed_once(recipes, seen):
    (first,), (second,) = (process["errors"] for process in seen)
    assert first[:2] == second[:2]
    assert first[0] == "OutputExistsError" and "it holds a finished run" in first[1]
    assert (first[2], second[2]) == (True, False)


def test_optimizer_states_are_whole_and_written_once(recipes, seen):
    import torch

    newest = [checkpoints.newest_complete(recipes[n].with_suffix("")) for n in SHARDED]
    states = [torch.load(Path(path) / "optimizer.pt") for path in newest]
    shapes = [
        {name: {k: v.shape for k, v in values.items()} for name, values in state["state"].items()}
        for state in states
    ]
    assert all(shape == shapes[0] for shape in shapes)
