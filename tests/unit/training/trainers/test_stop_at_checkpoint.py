"""A run that is asked to stop saves a checkpoint, and goes on to the bits of one left alone."""

import pytest

from fixtures.runs import adapter_bytes, untimed_metrics
from lorakit.errors import StoppedError
from lorakit.recipes import checkpoints
from lorakit.training import RunDirectory, train
from lorakit.training.stop_request import StopRequest
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

STRATEGIES = {
    "between evaluations": (3, {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}),
    "at an evaluation": (4, {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}),
    "at the end of an epoch": (5, {"max_steps": -1, "num_train_epochs": 2}),
    "at the last step": (10, {"max_steps": -1, "num_train_epochs": 2}),
    "in the midst of the last epoch": (8, {"max_steps": 8}),
    "where only the best is saved": (
        5,
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "best",
            "greater_is_better": True,  # the loss falls, so that the first is the best
        },
    ),
    "where nothing is saved": (3, {"save_strategy": "no", "gradient_accumulation_steps": 2}),
}


def asking_at(step):
    """A request, and a listener that makes it at a step."""
    stop = StopRequest()

    def listen(name, payload):
        if name == "step" and payload["step"] == step:
            assert stop.is_observed
            stop.set(15)

    return stop, listen


@pytest.mark.parametrize(("step", "training"), STRATEGIES.values(), ids=STRATEGIES)
def test_a_stopped_run_goes_on_as_if_it_never_had(recipe, step, training):
    training = {"max_steps": 6, "logging_steps": 3, **training}
    stop, listen = asking_at(step)
    with pytest.raises(StoppedError) as caught:
        train(recipe(training=training), stop=stop, on_event=listen)
    checkpoint = caught.value.checkpoint
    assert (checkpoints.step_of(checkpoint), caught.value.number) == (step, 15)
    assert checkpoints.problems(checkpoint) == [] and not stop.is_observed
    resumed = train(recipe(training=training), resume=True)
    straight = train(recipe("straight", training=training))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)
    assert resumed.metrics == straight.metrics


def test_a_run_killed_after_an_epoch_goes_on_as_if_it_never_had(recipe, stop_after):
    training = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3}
    with stop_after(6):
        train(recipe(training=training))
    resumed = train(recipe(training=training), resume=True)
    straight = train(recipe("straight", training=training))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)


def test_a_request_after_the_last_step_changes_nothing(recipe, monkeypatch):
    stop = StopRequest()
    finish = AdapterTrainerMixin._finalize_training

    def asking(self, *args):
        stop.set()
        return finish(self, *args)

    monkeypatch.setattr(AdapterTrainerMixin, "_finalize_training", asking)
    result = train(recipe(), stop=stop)
    assert result.steps == 4 and stop.number and not stop.is_observed
    assert RunDirectory.open(result.run_dir).is_finished
