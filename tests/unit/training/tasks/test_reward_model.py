"""Reward models are trained on pairs, and evaluated."""

import pytest

from fixtures.preferences import PAIRS, preference_recipe
from lorakit import train
from lorakit.errors import DataError
from lorakit.training.evaluation import evaluate

TRAINING = {
    "use_cpu": True,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 3,
}


@pytest.mark.parametrize("base", ["tiny_llama_dir", "tiny_distilbert_dir"])
def test_a_reward_model_scores_the_chosen_answer_higher(tmp_path, request, base):
    recipe = preference_recipe(
        *(tmp_path, request.getfixturevalue(base), PAIRS, {"type": "reward"}), training=TRAINING
    )
    recipe = recipe.model_copy(update={"output": str(tmp_path / "run")})
    result = train(recipe)
    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    assert result.metrics.keys() == {f"eval_{name}" for name in names}
    assert result.metrics["eval_accuracy"] == 1
    assert evaluate(tmp_path / "run") == pytest.approx(result.metrics, rel=1e-3, abs=1e-4)


def test_a_classifier_without_an_objective_says_which_line_to_add(
    tmp_path, tiny_distilbert_dir, recipe_of, jsonl
):
    recipe = recipe_of("SEQ_CLS", tiny_distilbert_dir, jsonl(PAIRS))
    with pytest.raises(DataError, match=r"`task: SEQ_CLS` and `objective: \{type: reward\}`"):
        train(recipe.model_copy(update={"output": str(tmp_path / "run")}))
