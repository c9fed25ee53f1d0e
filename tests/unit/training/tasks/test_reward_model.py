"""Reward models are trained on pairs, and evaluated."""

import json

import pytest
import torch

from fixtures.data import write_jsonl
from fixtures.preferences import CHATS, PAIRS, preference_recipe
from lorakit import load_run, train
from lorakit.data import load_splits
from lorakit.errors import DataError
from lorakit.inference.file_predictions import predict_file
from lorakit.training.evaluation import evaluate
from lorakit.training.tasks import Loaded, task_of
from lorakit.training.tasks.reward_model import LABELS

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


@pytest.mark.parametrize(("rows", "is_chat"), [(PAIRS, False), (CHATS, True)])
def test_a_reward_model_is_used_as_it_was_trained(tmp_path, tiny_llama_dir, rows, is_chat):
    one_step = {**TRAINING, "max_steps": 1, "num_train_epochs": 1}
    recipe = preference_recipe(
        tmp_path, tiny_llama_dir, rows, {"type": "reward"}, training=one_step
    )
    result = train(recipe.model_copy(update={"output": str(tmp_path / "run")}))
    run = load_run(tmp_path / "run")
    row = json.loads((tmp_path / "preferences.jsonl").read_text().splitlines()[0])
    given = row["prompt"] + row["chosen"]
    file = write_jsonl(tmp_path / "answers.jsonl", [{"messages" if is_chat else "text": given}])
    (score,) = run.predict([given])
    predict_file(run.loaded, file, tmp_path / "scores.jsonl")
    task = task_of(recipe)
    loaded = Loaded(recipe, run.loaded.tokenizer, LABELS, run.loaded.model)
    encoded = task.encode(load_splits(recipe.data, 42), loaded)
    prompt, chosen, _ = encoded.train[0]["parts"]
    ids = torch.tensor([encoded.train[0]["input_ids"][: prompt + chosen]])
    with torch.no_grad():
        expected = run.loaded.model(ids).logits.item()
    assert result.steps == 1 and score.values == {"reward": pytest.approx(expected, abs=1e-5)}
    written = json.loads((tmp_path / "scores.jsonl").read_text())
    assert written["prediction"] == pytest.approx(expected, abs=1e-5)


def test_a_classifier_without_an_objective_says_which_line_to_add(
    tmp_path, tiny_distilbert_dir, recipe_of, jsonl
):
    recipe = recipe_of("SEQ_CLS", tiny_distilbert_dir, jsonl(PAIRS))
    with pytest.raises(DataError, match=r"`task: SEQ_CLS` and `objective: \{type: reward\}`"):
        train(recipe.model_copy(update={"output": str(tmp_path / "run")}))
