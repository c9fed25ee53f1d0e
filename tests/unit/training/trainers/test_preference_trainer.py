"""The trainer of objectives: shared prompts, batches to time, and a loss that cannot move."""

import pytest

from fixtures.preferences import PAIRS, preference_recipe
from lorakit import train
from lorakit.errors import TrainingError


def test_a_llama_shares_prompts_and_a_bloom_does_not(
    prepare_preferences, tiny_llama_dir, tiny_bloom_dir, tmp_path
):
    assert prepare_preferences(tiny_llama_dir).trainer(tmp_path).data_collator.shares_prompts
    trainer = prepare_preferences(tiny_bloom_dir).trainer(tmp_path)
    assert not trainer.data_collator.shares_prompts
    assert "computed once for each answer: this BloomForCausalLM cannot" in trainer.notes[0]
    batch = trainer.timed_collator([trainer.train_dataset[0]])
    assert trainer.model(**batch).loss > 0


def test_a_loss_that_cannot_move_stops_the_run(tmp_path, tiny_llama_dir):
    # The answers differ only after what max_length keeps.
    rows = [{**row, "chosen": " red dog cat", "rejected": " red dog bird"} for row in PAIRS]
    training = {"use_cpu": True}
    recipe = preference_recipe(tmp_path, tiny_llama_dir, rows, training=training, max_length=9)
    recipe = recipe.model_copy(update={"output": str(tmp_path / "run")})
    with pytest.raises(TrainingError, match=r"cannot move from its first value \(ln 2 = 0.693"):
        train(recipe)
