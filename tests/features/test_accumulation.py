"""Accumulated batches train as one large batch does; their loss does not grow with their number."""

import pytest
import torch
from transformers import set_seed

from tiny_models import randomize_
from tolerances import largest_error

TEXTS = ["a good film", "a bad story", "the great cat", "the awful dog"]
ROWS = {
    "SEQ_CLS": [{"text": TEXTS[i % 4], "label": ["up", "down"][i % 2]} for i in range(16)],
    "TOKEN_CLS": [{"tokens": TEXTS[i % 4].split(), "tags": ["O", "O", "B-PER"]} for i in range(16)],
    "CAUSAL_LM": [{"prompt": "it was", "completion": " good" * (1 + i % 3)} for i in range(16)],
}
MODELS = {
    "SEQ_CLS": "tiny_distilbert_dir",
    "TOKEN_CLS": "tiny_bert_dir",
    "CAUSAL_LM": "tiny_llama_dir",
}


@pytest.mark.parametrize("task", ROWS)
def test_accumulated_batches_are_one_large_batch(prepare, request, jsonl, tmp_path, task):
    model, rows = request.getfixturevalue(MODELS[task]), jsonl(ROWS[task])
    losses, weights = [], []
    for batches in (1, 4):
        made = prepare(task, model, rows)
        made.add_adapter()
        for module in randomize_(made.model, scale=0.1).modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = made.trainer(
            tmp_path,
            per_device_train_batch_size=8 // batches,
            gradient_accumulation_steps=batches,
            max_steps=1,
            optim="sgd",  # Adam would hide gradients that are too large by a factor
            max_grad_norm=0,
        )
        set_seed(0)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        weights.append({n: p for n, p in made.model.named_parameters() if p.requires_grad})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, parameter in weights[0].items():
        assert largest_error(weights[1][name], parameter) < 1e-5, name
