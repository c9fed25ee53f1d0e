"""What the last step makes useless is neither saved nor taken up again."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.errors import ConfigError, TrainingError
from lorakit.recipes import checkpoints
from lorakit.recipes.usable_numbers import has_usable_numbers
from lorakit.training import RunDirectory, evaluate, train
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "logging_steps": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_sound(value):
    assert has_usable_numbers(torch.tensor([1e3, -1e3])) and has_usable_numbers(torch.empty(0))
    assert has_usable_numbers(torch.tensor([1 << 40]))
    for dtype in (torch.float32, torch.bfloat16):
        assert not has_usable_numbers(torch.tensor([0.0, value], dtype=dtype))


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


def test_a_metric_that_nobody_reports_is_told_before_training(recipe, tmp_path):
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
