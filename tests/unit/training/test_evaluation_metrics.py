"""Which metric picks the best checkpoint, and which evaluation is that of the final weights."""

from types import SimpleNamespace

import pytest

from lorakit.training.evaluation_metrics import (
    UnknownMetricError,
    final_metrics,
    final_step,
    is_evaluated,
    model_metrics,
    require_metric,
)


@pytest.mark.parametrize("name", [None, "loss", "eval_loss"])
def test_a_metric_of_the_evaluation_is_accepted(name):
    require_metric({"metric_for_best_model": name}, ["loss", "accuracy"])


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(UnknownMetricError) as caught:
        require_metric({"metric_for_best_model": "eval_acuracy"}, ["loss", "accuracy"])
    assert str(caught.value) == (
        "training.metric_for_best_model: got 'eval_acuracy', expected a metric of the evaluation: "
        "loss, accuracy. Did you mean 'accuracy'?"
    )
    assert caught.value.known == ["loss", "accuracy"]


def test_speeds_are_no_metrics_of_a_model():
    speeds = {"eval_runtime": 1.0, "eval_samples_per_second": 2.0, "eval_num_tokens": 3.0}
    assert model_metrics({"eval_loss": 0.5, "epoch": 1.0, **speeds}) == {"eval_loss": 0.5}


def trainer(best=None, last=4, **arguments):
    history = [{"step": step, "loss": 1.0} for step in (2, 4)]
    history += [{"step": step, "eval_loss": step / 10} for step in (2, 4)]
    return SimpleNamespace(
        eval_dataset=[1],
        args=SimpleNamespace(
            **{"eval_strategy": "steps", "load_best_model_at_end": True, **arguments}
        ),
        state=SimpleNamespace(
            best_model_checkpoint=best and f"checkpoint-{best}",
            best_global_step=best,
            global_step=last,
            log_history=history,
        ),
        evaluate=lambda: {"eval_loss": 9.0, "eval_runtime": 1.0},
    )


@pytest.mark.parametrize(
    ("made", "loss"),
    [
        (trainer(best=2), 0.2),
        (trainer(best=2, load_best_model_at_end=False), 0.4),
        (trainer(), 0.4),
        (trainer(last=5), 9.0),  # no evaluation at the last step
    ],
)
def test_final_metrics_are_those_of_the_weights_that_are_kept(made, loss):
    assert final_metrics(made) == {"eval_loss": loss}


def test_the_final_step_is_the_best_or_the_last():
    assert final_step(trainer(best=2)) == 2
    assert final_step(trainer(best=2, load_best_model_at_end=False)) == 4
    assert is_evaluated(trainer()) and not is_evaluated(trainer(eval_strategy="no"))


def test_a_run_without_evaluation_has_no_metrics():
    assert final_metrics(trainer(eval_strategy="no")) == {}
    without = trainer()
    without.eval_dataset = None
    assert final_metrics(without) == {}
