"""The trainer of objectives: shared prompts, batches to time, and a loss that cannot move."""

from dataclasses import replace

import pytest

from fixtures.preferences import PAIRS, preference_recipe
from lorakit import train
from lorakit.errors import DataError, TrainingError
from lorakit.training.objectives.direct import DPO


def test_a_llama_shares_prompts_and_a_bloom_does_not(
    prepare_preferences, tiny_llama_dir, tiny_bloom_dir, tmp_path
):
    assert prepare_preferences(tiny_llama_dir).trainer(tmp_path).data_collator.shares_prompts
    trainer = prepare_preferences(tiny_bloom_dir).trainer(tmp_path)
    assert not trainer.data_collator.shares_prompts
    assert "computed once for each answer: this BloomForCausalLM cannot" in trainer.notes[0]
    batch = trainer.timed_batch([trainer.train_dataset[0]])
    assert trainer.model(**batch).loss > 0


def test_a_loss_that_cannot_move_stops_the_run(tmp_path, tiny_llama_dir, monkeypatch):
    recipe = preference_recipe(tmp_path, tiny_llama_dir, training={"use_cpu": True})
    recipe = recipe.model_copy(update={"output": str(tmp_path / "run")})
    compare = DPO.compare

    def constant(self, policy, reference):
        return compare(self, replace(policy, sums=0 * policy.sums), reference)

    monkeypatch.setattr(DPO, "compare", constant)
    with pytest.raises(TrainingError, match=r"cannot move from its first value \(ln 2 = 0.693"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_answers_that_are_the_same_tokens_are_left_out(
    tmp_path, prepare_preferences, tiny_llama_dir
):
    rows = [{**row, "chosen": " red dog cat", "rejected": " red dog bird"} for row in PAIRS[:3]]
    with pytest.raises(DataError, match=r"or both answers are the same\. Raise data"):
        prepare_preferences(tiny_llama_dir, rows, max_length=8)
