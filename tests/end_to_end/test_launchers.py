"""The command by accelerate launch, in two processes and on Ray: one prints, writes and fails."""

import json
import warnings

import pytest
from safetensors.torch import load_file

from forked import run, run_together
from launched import metric_rows, write_recipe
from lorakit.errors import ClusterError, MissingFileError
from lorakit.libraries.ray_cluster import ray_cluster
from lorakit.training import Recipe, RunDirectory
from lorakit.tuning.ray_training import train_on_ray


@pytest.fixture(scope="module")
def write(tmp_path_factory, tiny_distilbert_dir, cls_csv):
    folder = tmp_path_factory.mktemp("launched")

    def make(name, **training):
        return write_recipe(
            folder / f"{name}.yaml",
            model=tiny_distilbert_dir,
            task="SEQ_CLS",
            data={"train": cls_csv, "validation_fraction": 0.25},
            lora={"r": 4},
            training={"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True} | training,
        )

    return make


# A plan takes a process that imports the libraries again; the tests of `planning` make one.
WITHOUT_PLAN = """
import lorakit.planning.separate_process
from lorakit.__main__ import main

lorakit.planning.separate_process.plan_in_separate_process = lambda *_: None
"""


@pytest.fixture(scope="module")
def by_accelerate(write, python_of_forks):
    """Train by `accelerate launch`, sharded as it says; returns what was printed, and the run."""
    recipe = write("sharded")
    program = recipe.with_suffix(".py")
    program.write_text(WITHOUT_PLAN + "main()")
    launcher = ["--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    launcher += ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1"]
    launch = "from accelerate.commands.launch import main; main()"
    launcher += ["--no_python", python_of_forks]
    done = run(launch, *launcher, program, "train", recipe, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stderr
    return done.stdout, recipe.with_suffix("")


def test_accelerate_launch_prints_and_writes_once(by_accelerate):
    printed, path = by_accelerate
    assert printed.count("Reading") == printed.count("Trained 4 steps") == 1
    assert (
        "Each step has about 8 examples: 4 in a batch, 2 processes, 1 batch accumulated." in printed
    )
    assert "The model is sharded over 2 processes (FSDP2)." in printed
    assert RunDirectory.open(path).processes == 2 and RunDirectory.open(path).is_finished
    assert [row["step"] for row in metric_rows(path) if row["event"] == "step"] == [1, 2, 3, 4]


def test_what_one_process_alone_finds_is_one_error(write):
    recipe = write("failing", max_steps=200)
    ended = run_together(WITHOUT_PLAN + FAILS_IN_ONE, "train", recipe)
    assert all(one.returncode for one in ended)
    printed = "".join(one.stderr for one in ended)
    assert printed.count("Error: ") == 1
    assert "Error: The loss is nan on step 3, expected a number." in printed
    assert not recipe.with_suffix("").exists()


FAILS_IN_ONE = """
import torch
from lorakit.training.trainers.numerical_checks import LearningWatch
from lorakit.distributed.processes import process_rank

check = LearningWatch.check_loss

def check_loss(self, loss, step, scaler):
    fails = step == 2 and process_rank() == 1
    check(self, torch.tensor(float("nan")) if fails else loss, step, scaler)

LearningWatch.check_loss = check_loss
main()
"""


@pytest.fixture(scope="class")
def own_ray(forked_workers):
    """Ray as the command starts it, while tests of it run."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        for name, value in forked_workers.items():
            patch.setenv(name, value)
        with ray_cluster():
            yield


@pytest.mark.usefixtures("own_ray")
class TestRay:
    @pytest.mark.filterwarnings("ignore")  # Ray's own
    def test_trains_what_two_processes_do(self, write, by_accelerate):
        events = []
        recipe = write("ray")
        result = train_on_ray(recipe, 2, on_event=lambda name, payload: events.append(name))
        assert events.count("finished") == events.count("run_opened") == 1
        assert events.index("data") < events.index("step") < events.index("finished")
        ours, theirs = (
            load_file(path / "adapter/adapter_model.safetensors")
            for path in (result.run_dir, by_accelerate[1])
        )
        assert all((tensor - theirs[name]).abs().max() < 1e-5 for name, tensor in ours.items())
        hidden = [path.name for path in result.run_dir.iterdir() if path.name.startswith(".")]
        assert hidden == [] and not list(recipe.parent.glob(".*"))

    @pytest.mark.filterwarnings("ignore")
    def test_a_worker_s_error_is_the_error(self, write, monkeypatch):
        """The worker is a thread here; Ray's queues carry its events and its error."""

        class InThisProcess:
            def __init__(self, loop, *, train_loop_config, **_):
                self.fit = lambda: loop(train_loop_config)

        monkeypatch.setattr("ray.train.torch.TorchTrainer", InThisProcess)
        recipe = write("missing")
        values = json.loads(recipe.read_text())
        values["data"]["train"] = "no-such-file.csv"
        with pytest.raises(MissingFileError, match=r"No data in data\.train"):
            train_on_ray(Recipe.check(values, "a recipe"), 1)

    def test_more_than_there_is(self, write):
        with pytest.raises(ClusterError, match="Too few resources for --ray 999: got 999 x"):
            train_on_ray(write("many"), 999)

    def test_a_client_s_address(self, write):
        with pytest.raises(ClusterError, match="Log in to one of its machines"):
            train_on_ray(write("client"), 2, address="ray://localhost:10001")
