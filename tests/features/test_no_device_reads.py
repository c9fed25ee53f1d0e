"""A training step reads nothing from the device, so the device never waits for Python.

It runs on torch's meta device, whose tensors have no values: what reads one fails. One read is left
out: transformers looks at the mask of padding once in a forward, to leave out a mask of ones.
"""

import pytest
import torch
from torch.utils._pytree import tree_map_only

from lorakit.training.trainers.numerical_checks import is_read_freely

META = torch.device("meta")
TASKS = {
    "CAUSAL_LM": ("tiny_llama_dir", "prompt_jsonl", {}),
    "SEQ_CLS": ("tiny_distilbert_dir", "cls_csv", {"text": "text", "label": "label"}),
}


@pytest.fixture
def on_device(prepare, request, tmp_path):
    """Return a trainer of a task whose model is on the device, and a batch there."""

    def make(task, **arguments):
        model, data, columns = TASKS[task]
        options = {"lora": {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.1}}
        prepared = prepare(
            task,
            request.getfixturevalue(model),
            request.getfixturevalue(data),
            **options,
            **columns,
        )
        prepared.task.base_trainer_class = prepared.task.trainer_class
        trainer = prepared.trainer(tmp_path, per_device_train_batch_size=3, **arguments)
        batch = trainer.counting_collator()([*prepared.encoded.train.select(range(3))])
        trainer.model.to(META).train()
        trainer._prepare_inputs = lambda inputs: inputs
        return trainer, tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), batch)

    return make


@pytest.fixture(autouse=True)
def mask_is_not_read(monkeypatch):
    """Make transformers keep the mask of padding without looking at it, as it does in a graph."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: True)


def step(trainer, batch):
    """Run an optimizer step of two batches, as the Trainer's loop does."""
    trainer.current_gradient_accumulation_steps = 2
    batches, items = trainer.get_batch_samples(iter([batch, batch]), 2, META)
    for number, inputs in enumerate(batches):
        trainer.accelerator.gradient_state._set_sync_gradients(number == 1)
        trainer.training_step(trainer.model, {**inputs}, items)
    norm = trainer._clip_grad_norm(trainer.model)
    trainer._get_grad_norm(trainer.model, grad_norm=norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()


@pytest.mark.parametrize("task", TASKS)
def test_a_step_reads_nothing(on_device, task):
    # The fused AdamW has no version for this device.
    trainer, batch = on_device(task, optim="adamw_torch")
    trainer.create_optimizer()
    trainer.watch.has_seen_gradients = True  # the first step alone looks at each gradient
    step(trainer, batch)
    assert not is_read_freely(trainer.watch._unread[-1][2]) and len(trainer.watch._unread) == 3
