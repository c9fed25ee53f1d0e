"""Whether a run can learn is found out on its first step."""

import pytest
import torch
from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import TrainingError
from lorakit.injection import add_adapter
from lorakit.training.trainers.first_step import LearningWatch


class Scaler:
    def get_scale(self):
        return 0.125


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential()
    made.add_module("inner", nn.Linear(4, 4))
    made.add_module("head", nn.Linear(4, 2))
    add_adapter(made, LoraConfig(r=2, target_modules=["inner"], modules_to_save=["head"]))
    return made


def backward(model, scale=1.0):
    (model(torch.ones(3, 4)).square().sum() * scale).backward()


def test_a_zero_lora_a_gradient_is_normal_on_the_first_step(model):
    backward(model)
    update = model.inner.updates["default"]
    assert not torch.count_nonzero(update.lora_A.grad)
    watch = LearningWatch()
    watch.check_gradients(model, 0, None)
    assert watch.has_seen_gradients


def test_all_zero_is_an_error_that_says_what_to_do(model):
    backward(model, scale=0.0)
    with pytest.raises(TrainingError) as caught:
        LearningWatch().check_gradients(model, 0, None)
    assert str(caught.value) == (
        "All gradients are zero on step 1, for 2 LoRA parameters (inner.updates.default.lora_A, "
        "inner.updates.default.lora_B); expected some that are not. The loss does not change with "
        "the model's output: the labels are all masked, or the base's activations or weights are "
        "zero. Look at the examples with `--dry-run`."
    )


def test_a_learning_head_does_not_hide_a_dead_adapter(model):
    backward(model)
    for parameter in model.inner.updates.parameters():
        parameter.grad = None
    with pytest.raises(TrainingError, match="The adapter's gradients are zero on step 1") as caught:
        LearningWatch().check_gradients(model, 0, None)
    assert "No gradient came back to the adapter at all" in str(caught.value)


def test_a_head_that_starts_at_zero_gets_time_to_move(model):
    head = next(p for n, p in model.named_parameters() if p.requires_grad and n.endswith("weight"))
    with torch.no_grad():
        head.zero_()
    backward(model)
    watch = LearningWatch()
    watch.check_gradients(model, 0, None)
    assert not watch.has_seen_gradients
    with torch.no_grad():
        head.add_(0.1)
    model.zero_grad()
    backward(model)
    watch.check_gradients(model, 1, None)
    assert watch.has_seen_gradients


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_a_number_is_named(model, value):
    backward(model)
    model.inner.updates["default"].lora_B.grad[0, 0] = value
    with pytest.raises(TrainingError) as caught:
        LearningWatch().check_gradients(model, 0, None)
    assert str(caught.value).startswith(
        "The gradients of 1 parameters (inner.updates.default.lora_B) are NaN or infinite on step "
        "1, expected numbers. On the first step the base model or the data is at fault"
    )


def test_later_steps_are_told_by_their_norm():
    with pytest.raises(TrainingError, match=r"norm of the gradients is nan on step 8.*Lower"):
        LearningWatch().check_norm(torch.tensor(float("nan")), 7, None)
    LearningWatch().check_norm(0.0, 7, None)


def test_a_loss_that_is_not_a_number_is_told():
    with pytest.raises(TrainingError, match=r"The loss is inf on step 3, expected a number\. Low"):
        LearningWatch().check_loss(torch.tensor(float("inf")), 2, None)


def test_float16_overflows_are_skipped_but_not_for_ever(model):
    watch, scaler, overflow = LearningWatch(), Scaler(), torch.tensor(float("inf"))
    watch.check_loss(overflow, 0, scaler)
    backward(model)
    model.inner.updates["default"].lora_B.grad[0, 0] = float("inf")
    watch.check_gradients(model, 0, scaler)
    assert not watch.has_seen_gradients
    for step in range(19):
        watch.check_norm(overflow, step, scaler)
    watch.check_norm(torch.tensor(1.0), 19, scaler)
    for step in range(19):
        watch.check_norm(overflow, step, scaler)
    with pytest.raises(TrainingError, match="overflowed in 20 steps on end, down to a loss"):
        watch.check_norm(overflow, 40, scaler)
