"""A run meets the others instead of running its backbone's forward, from the first step on."""

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from lorakit import LoraConfig, add_adapter, disable_adapters
from lorakit.training.together.meeting_point import meeting
from tiny_models import llama, tokens


class Trainer:
    """What `meeting` reads of a trainer."""

    def __init__(self, model):
        self.model, self.callbacks, self.done = model, [], []
        self.accelerator = SimpleNamespace(
            unwrap_model=lambda model: model, backward=lambda loss, **kwargs: loss.backward()
        )

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def remove_callback(self, callback):
        self.callbacks.remove(callback)


class Meeting:
    def __init__(self, model):
        self.model, self.asked = model, []

    def join(self):
        self.asked.append("begin")
        return self

    def forward(self, adapter, inputs, dtype):
        self.asked.append((adapter, sorted(inputs)))
        shape = (*inputs["input_ids"].shape, self.model.config.hidden_size)
        return BaseModelOutputWithPast(last_hidden_state=torch.ones(shape, requires_grad=True))

    def compute_alone(self):
        self.asked.append("alone")

    def backward(self):
        self.asked.append("backward")


@pytest.fixture
def model():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    return model


def test_passes_are_asked_for_once_training_begins(model):
    trainer, asked = Trainer(model), Meeting(model)
    inputs = tokens(model)
    with meeting(trainer, asked.join):
        model(**inputs)
        assert asked.asked == []
        trainer.callbacks[0].on_train_begin(None, None, None)
        loss = model(**inputs).logits.sum()
        trainer.accelerator.backward(loss)
        with disable_adapters(model):
            model(**inputs)
    names = sorted({*inputs, "use_cache"})
    assert asked.asked == ["begin", (True, names), "backward", (False, names)]
    assert "forward" not in vars(model.model) and trainer.callbacks == []
    model(**inputs)
    assert len(asked.asked) == 4


def test_passes_with_a_cache_or_other_outputs_run_alone(model):
    trainer, asked = Trainer(model), Meeting(model)
    inputs = tokens(model)
    with meeting(trainer, asked.join):
        trainer.callbacks[0].on_train_begin(None, None, None)
        cache = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).cache
        assert cache is not None
        model(**inputs, output_hidden_states=True)
    assert set(asked.asked[1:]) == {"alone"}
