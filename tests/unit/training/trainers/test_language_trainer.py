"""Language models: metrics over all counted tokens, and factors that keep their dtype."""

import math
from types import SimpleNamespace

import pytest
import torch

from lorakit.config import NOT_COUNTED
from lorakit.errors import ConfigError
from lorakit.training.trainers.language_trainer import _hide_quantization

TASK = "CAUSAL_LM"


def token_weighted_loss(made):
    """The mean over all counted tokens, from the model's own logits, row by row."""
    total, tokens = 0.0, 0
    made.model.eval()
    for row in made.encoded.validation:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = made.model(torch.tensor([row["input_ids"]])).logits
        shifted = labels[0, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits[0, :-1], shifted, ignore_index=NOT_COUNTED, reduction="sum"
        )
        total, tokens = total + loss.item(), tokens + int((shifted != NOT_COUNTED).sum())
    return total / tokens


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_perplexity_is_that_of_all_counted_tokens(
    prepare, tiny_gpt2_dir, jsonl, tmp_path, batch_rows
):
    rows = [{"text": "the grass is green " * (1 + i % 4)} for i in range(12)]  # uneven lengths
    made = prepare(TASK, tiny_gpt2_dir, jsonl(rows))
    trainer = made.trainer(
        tmp_path, per_device_eval_batch_size=batch_rows, label_smoothing_factor=0.2
    )

    metrics = trainer.evaluate()

    expected = token_weighted_loss(made)
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_dynamic_fine_tuning_is_never_smoothed(prepare, tiny_gpt2_dir, text_jsonl, tmp_path):
    made = prepare(TASK, tiny_gpt2_dir, text_jsonl)
    assert made.trainer(tmp_path, loss_type="dft").step.token_loss.weighs_by_probability
    with pytest.raises(ConfigError, match=r"label_smoothing_factor=0\.1, expected 0"):
        made.trainer(tmp_path, loss_type="dft", label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_adapter_on_the_output_layer_is_trained(
    prepare, tiny_llama_dir, text_jsonl, tmp_path, lora
):
    made = prepare(TASK, tiny_llama_dir, text_jsonl, lora={"r": 4, **lora})
    made.add_adapter()
    before = {n: p.clone() for n, p in made.model.named_parameters() if p.requires_grad}
    trainer = made.trainer(tmp_path, max_steps=3)

    trainer.train()
    loss = trainer.evaluate()["eval_loss"]

    changed = {
        n for n, p in made.model.named_parameters() if n in before and (p != before[n]).any()
    }
    assert any("lm_head" in name for name in changed)
    assert loss == pytest.approx(token_weighted_loss(made), rel=1e-4)


def test_tokens_without_padding_and_without_rows_that_only_pad_are_counted(
    prepare, tiny_llama_dir, text_jsonl, tmp_path
):
    made = prepare(TASK, tiny_llama_dir, text_jsonl)
    trainer = made.trainer(tmp_path, max_steps=1)
    trainer.model.train()
    trainer._total_train_tokens = 10
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    labels = torch.tensor([[5, 6, NOT_COUNTED], [NOT_COUNTED] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    trainer.compute_loss(
        trainer.model, {"input_ids": ids, "labels": labels, "attention_mask": mask}
    )
    assert trainer._metrics["train"]["num_tokens"] == [12]
    # Two packed texts of two and three tokens, and two positions of padding.
    positions = torch.tensor([[0, 1, 0, 1, 2, 0, 0]])
    trainer.compute_loss(
        trainer.model, {"input_ids": positions, "labels": positions, "position_ids": positions}
    )
    assert trainer._metrics["train"]["num_tokens"] == [17]


def test_trl_does_not_see_that_a_base_is_quantized():
    model = SimpleNamespace(is_loaded_in_4bit=True, other=1)
    with pytest.raises(ZeroDivisionError), _hide_quantization(model):
        assert vars(model) == {"other": 1}
        raise ZeroDivisionError
    assert vars(model) == {"is_loaded_in_4bit": True, "other": 1}
