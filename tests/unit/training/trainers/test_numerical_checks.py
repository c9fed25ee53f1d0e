"""A run that cannot learn stops, and useless numbers are not saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import ConfigError, TrainingError
from lorakit.injection import add_adapter
from lorakit.recipes import checkpoints
from lorakit.training import RunDirectory, evaluate, train
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.numerical_checks import LearningWatch

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "logging_steps": 1}


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
        "inner.updates.default.lora_B); expected nonzero ones. The loss does not change with "
        "the model's output: the labels are all masked, or the base's activations or weights are "
        "zero. Look at the examples with `--dry-run`."
    )


def test_a_learning_head_does_not_hide_a_dead_adapter(model):
    backward(model)
    for parameter in model.inner.updates.parameters():
        parameter.grad = None
    with pytest.raises(TrainingError, match="The adapter's gradients are zero on step 1") as caught:
        LearningWatch().check_gradients(model, 0, None)
    assert "No gradient reached the adapter" in str(caught.value)


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


def test_later_steps_are_checked_by_their_norm():
    with pytest.raises(TrainingError, match=r"norm of the gradients is nan on step 8.*Lower"):
        LearningWatch().check_norm(torch.tensor(float("nan")), 7, None)
    LearningWatch().check_norm(0.0, 7, None)


def test_a_loss_that_is_not_a_number_is_reported():
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
    with pytest.raises(TrainingError, match="overflowed in 20 consecutive steps, down to a loss"):
        watch.check_norm(overflow, 40, scaler)


@pytest.mark.parametrize(
    "training",
    [
        {"learning_rate": 1e39, "max_steps": 1},
        {"learning_rate": 1e30, "max_steps": 1},
        {"learning_rate": 1e30, "max_steps": 1, "save_strategy": "no"},
        {"lora_plus_ratio": 1e308, "max_steps": 1},
    ],
)
def test_a_last_step_that_ruins_the_adapter_is_an_error(recipe, tmp_path, training):
    with pytest.raises(TrainingError, match=r"^The adapter is of no use after step 1: .*lora"):
        train(recipe(training={"eval_strategy": "no", **training}))
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_ruins_a_weight_is_not_sealed(recipe, monkeypatch):
    clip = AdapterTrainerMixin._clip_grad_norm

    def ruin(self, model):
        if self.state.global_step == 2:
            trained = next(p for p in model.parameters() if p.requires_grad)
            trained.data.fill_(float("nan"))
        return clip(self, model)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="after step 3"):
        patch.setattr(AdapterTrainerMixin, "_clip_grad_norm", ruin)
        train(recipe(training=EVERY_STEP))
    run = RunDirectory.open(recipe().output)
    assert checkpoints.newest_complete(run.path).name == "checkpoint-2"
    resumed = train(recipe(training=EVERY_STEP), resume=True)
    straight = train(recipe("straight", training=EVERY_STEP))
    files = [r.adapter_path / "adapter_model.safetensors" for r in (resumed, straight)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_that_was_sealed_with_nan_is_not_taken(recipe):
    result = train(recipe(training=EVERY_STEP))
    newest = result.run_dir / "checkpoint-4"
    weights = newest / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: torch.full_like(t, float("nan")) for name, t in tensors.items()}, weights)
    checkpoints.seal(newest)
    assert checkpoints.problems(newest) == ["adapter_model.safetensors holds NaN or infinity"]
    assert checkpoints.newest_complete(result.run_dir).name == "checkpoint-3"


def test_an_evaluation_that_is_no_number_is_an_error(recipe):
    result = train(recipe(training={"eval_strategy": "no"}))
    assert result.metrics == {}
    weights = result.adapter_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({n: t * 1e25 for n, t in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"The evaluation's loss \(eval_loss\) is nan"):
        evaluate(result.run_dir)


def test_a_metric_that_nobody_reports_is_reported_before_training(recipe, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(recipe(training={"metric_for_best_model": "eval_acuracy"}))
    assert str(caught.value) == (
        "training.metric_for_best_model: got 'eval_acuracy', expected a metric of the evaluation: "
        "loss, perplexity, mean_token_accuracy. Did you mean 'mean_token_accuracy'?"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("warmup", [0.1, 0.25, 1])
def test_a_warm_up_of_one_step_loses_none(recipe, warmup):
    result = train(recipe(training={**EVERY_STEP, "warmup_steps": warmup, "max_steps": 2}))
    rates = [row["learning_rate"] for row in RunDirectory(result.run_dir).metrics()[:2]]
    assert rates[0] == 5e-3 and rates[1] > 0
