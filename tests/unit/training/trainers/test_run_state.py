"""The sums and the random state that a resumed run continues with."""

from types import SimpleNamespace

import pytest
import torch

from lorakit.training.trainers.run_state import RunState
from lorakit.training.trainers.running_measures import RunningMeasures


def trainer_with(loss, **more):
    meter = SimpleNamespace(state=lambda: {"tokens": 3}, load=lambda state: more["loaded"](state))
    return SimpleNamespace(
        _tr_loss=torch.tensor(loss),
        _total_loss_scalar=loss * 2,
        _globalstep_last_logged=int(loss),
        args=SimpleNamespace(device=torch.device("cpu")),
        meter=meter,
        measured=RunningMeasures(),
    )


def test_what_is_saved_is_restored_when_training_begins(tmp_path):
    saved, seen = RunState(trainer_with(4.0)), []
    saved.epoch_rng = torch.get_rng_state()
    expected = torch.rand(3)
    saved.save(tmp_path)
    trainer = trainer_with(0.0, loaded=seen.append)
    state = RunState(trainer)
    state.on_train_begin()
    assert trainer._tr_loss == 0.0 and not seen
    state.resumed_from = tmp_path
    state.on_train_begin()
    assert (trainer._tr_loss, trainer._total_loss_scalar) == (4.0, 8.0)
    assert (trainer._globalstep_last_logged, trainer._initial_global_step) == (4, 0)
    assert seen == [{"tokens": 3}] and not hasattr(trainer, "_total_train_tokens")
    state.load_epoch_rng()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("step", "steps", "evaluations_without_progress", "is_over"),
    [(6, 6, 0, True), (6, 9, 0, False), (6, 9, 2, True), (7, 7, 0, False)],
)
def test_a_run_is_over_at_its_last_step_or_when_it_had_stopped_early(
    tmp_path, step, steps, evaluations_without_progress, is_over
):
    counter = {"early_stopping_patience_counter": evaluations_without_progress}
    stopping = {"args": {"early_stopping_patience": 2}, "attributes": counter}
    progress = SimpleNamespace(
        global_step=step, max_steps=steps, stateful_callbacks={"EarlyStoppingCallback": stopping}
    )
    state = RunState(None)
    assert not state.is_over(progress)
    state.resumed_from = tmp_path / "checkpoint-6"
    assert state.is_over(progress) is is_over
    progress.stateful_callbacks = {}
    assert state.is_over(progress) is (step == steps == 6)
