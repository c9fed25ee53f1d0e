"""Training on Ray, without Ray: what is refused, and how events and errors come back."""

import pickle
import threading
from types import SimpleNamespace

import pytest

from lorakit.errors import ClusterError, MissingFileError, TrainingError
from lorakit.libraries.ray_cluster import Machine
from lorakit.recipes.recipe import Recipe
from lorakit.training.stop_request import StopRequest
from lorakit.tuning import ray_training


def recipe_of(**training):
    return Recipe(
        model="m", task="SEQ_CLS", data={"train": "x"}, output="runs/a", training=training
    )


class Queue(list):
    """A queue of Ray with its events already in it."""

    def empty(self):
        return not self

    def get(self, timeout):
        return self.pop(0)

    put = list.append


@pytest.fixture
def follow(tmp_path):
    """Follow workers that have ended after some events."""

    def run(events, stop=None, failure=(), sent=None):
        seen = []
        training = ray_training._RayTraining(recipe_of(), 2, 0, False, tmp_path / "s", [*failure])
        with ray_training.ExitStack() as stack:
            ended = threading.Thread()
            stop_queue = Queue() if sent is None else sent
            listen = lambda *event: seen.append(event)  # noqa: E731
            return training._follow(ended, Queue(events), stop_queue, listen, stop, stack), seen

    return run


def test_a_client_address_is_refused_before_ray_is_imported(monkeypatch):
    monkeypatch.setattr(ray_training, "import_ray", lambda: pytest.fail("Ray was imported"))
    with pytest.raises(ClusterError, match="got 'ray://head:1', expected host:port"):
        ray_training.train_on_ray(recipe_of(), 2, address="ray://head:1")


def test_each_process_has_a_gpu_unless_the_recipe_says_cpu():
    gpus, none = [Machine("a", 4, 0), Machine("b", 4, 2)], [Machine("a", 4, 0.5)]
    assert ray_training._gpus_each(recipe_of(), gpus) == 1
    assert ray_training._gpus_each(recipe_of(use_cpu=True), gpus) == 0
    assert ray_training._gpus_each(recipe_of(), none) == 0


def test_rays_files_are_beside_the_run_and_of_this_call():
    first, second = (ray_training._storage_beside("runs/a") for _ in range(2))
    assert first != second and first.is_absolute()
    assert first.parent.name == "runs" and first.name.startswith(".a.ray-")


def test_events_and_the_result_are_forwarded(follow):
    result = SimpleNamespace()
    events = [("step", {"step": 1}), ("finished", {"result": result})]
    assert follow(events) == (result, events)


def test_a_stop_request_is_sent_once_and_observed_while_the_run_is_open(follow):
    stop, sent = StopRequest(), Queue()
    stop.set(15)
    events = [("run_opened", {}), ("step", {}), ("finished", {"result": "done"})]
    follow(events, stop, sent=sent)
    assert sent == [15] and not stop.is_observed


def test_the_first_error_of_a_worker_is_raised(follow):
    first = TrainingError("first")
    with pytest.raises(TrainingError, match="first"):
        follow([("failed", first), ("failed", TrainingError("second"))], failure=[ValueError()])


def test_a_failure_without_an_error_of_a_worker_is_explained(follow):
    failure = [RuntimeError("a\n  the last line \n")]
    with pytest.raises(TrainingError, match=r"ended early: the last line\. .*--resume"):
        follow([], failure=failure)
    with pytest.raises(MissingFileError, match="file system that all machines share"):
        follow([], failure=[FileNotFoundError("no storage")])


def test_the_error_of_any_library_can_be_unpickled_anywhere():
    class LocalError(Exception):
        pass

    error = pickle.loads(pickle.dumps(ray_training._picklable(LocalError("x"))))
    assert isinstance(error, TrainingError) and str(error).endswith("failed: LocalError: x")


def test_a_machine_without_the_commands_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=f"has no directory {tmp_path}/none, in which"):
        ray_training._change_directory(tmp_path / "none")
