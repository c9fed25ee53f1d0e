"""A few real steps of a recipe, timed and counted."""

import math

from lorakit.planning.measurement import count_step, measure


def test_three_steps_are_taken_and_nothing_is_kept(recipe, tmp_path):
    made = recipe(**{"training.num_train_epochs": 2, "training.save_strategy": "epoch"})
    measured = measure(made)
    assert measured.updates == 2 * math.ceil(18 / 4)  # of the run, not those that were taken
    assert 0 < measured.step_s < 10
    assert measured.run_s == measured.step_s * measured.updates
    assert not (tmp_path / "run").exists()
    # The step that is counted has a fresh optimizer, so earlier steps do not change its memory.
    loaded = []
    counted = count_step(made, before=lambda: loaded.append(True))
    assert loaded == [True]
    assert counted.optimizer_bytes == measured.memory.optimizer_bytes > 0
    assert counted.saved_activation_bytes == measured.memory.saved_activation_bytes
