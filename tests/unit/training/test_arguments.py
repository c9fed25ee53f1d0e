"""What holds under `training:` where the recipe says nothing, and what cannot hold together."""

from pathlib import Path

import pytest
from transformers import IntervalStrategy, SchedulerType

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.training.arguments import build_arguments, resolve_training, without_schedule
from lorakit.training.tasks import task_for


def resolve(training, task="SEQ_CLS", rows=100, has_validation=True):
    recipe = Recipe(model="m", task=task, data={"train": "a"}, training=training, output="o")
    return resolve_training(recipe, task_for(recipe.task), rows, has_validation)


@pytest.mark.parametrize("task", list(TaskType))
def test_the_defaults_of_every_task_make_arguments(task, tmp_path):
    arguments = build_arguments(resolve({}, task), task_for(task), tmp_path)
    assert arguments.learning_rate == 2e-4
    assert arguments.seed == 42
    assert arguments.bf16 is False
    assert not arguments.gradient_checkpointing
    assert arguments.eval_strategy == arguments.save_strategy == IntervalStrategy.EPOCH
    assert arguments.load_best_model_at_end
    assert arguments.output_dir == str(tmp_path)
    assert arguments.report_to == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 7}, {"save_strategy": "steps", "save_steps": 7}),
        ({"eval_strategy": "no"}, {"save_strategy": "epoch", "load_best_model_at_end": False}),
        ({"save_strategy": "no"}, {"eval_strategy": "epoch", "load_best_model_at_end": False}),
        ({"save_strategy": "best"}, {"load_best_model_at_end": True}),
        (
            {"metric_for_best_model": "eval_loss"},
            {"greater_is_better": False, "load_best_model_at_end": True},
        ),
        ({"gradient_checkpointing": True}, {"activation_checkpointing": True}),
        ({"bf16": True, "seed": 3}, {"bf16": True, "seed": 3}),
    ],
)
def test_what_follows_from_what_is_given(given, expected):
    resolved = resolve(given)
    assert {key: resolved[key] for key in expected} == expected
    build_arguments(resolved, task_for(TaskType.SEQ_CLS), Path("o"))


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(10, 8, 1), (240, 8, 3), (10_000, 8, 10), (10_000, 100, 10)]
)
def test_short_runs_are_logged_more_often(rows, batch, steps):
    assert resolve({"per_device_train_batch_size": batch}, rows=rows)["logging_steps"] == steps


def test_logging_does_not_depend_on_the_number_of_epochs():
    # A run resumed for more epochs must log at the same steps.
    assert resolve({"num_train_epochs": 9}, rows=240)["logging_steps"] == 3


def test_without_validation_there_is_no_best_checkpoint():
    resolved = resolve({}, has_validation=False)
    assert resolved["eval_strategy"] == "no"
    assert resolved["save_strategy"] == "epoch"
    assert resolved["load_best_model_at_end"] is False
    assert resolved["metric_for_best_model"] is None


def test_combinations_that_transformers_refuses_are_config_errors():
    resolved = resolve({"bf16": True, "fp16": True, "use_cpu": False})
    with pytest.raises(ConfigError, match="The training arguments do not fit together: "):
        build_arguments(resolved, task_for(TaskType.SEQ_CLS), Path("o"))
    resolved = resolve({"eval_strategy": "steps", "eval_steps": 2, "save_steps": 3})
    with pytest.raises(ConfigError, match=r"together: training\.load_best_model_at_end requires"):
        build_arguments(resolved, task_for(TaskType.SEQ_CLS), Path("o"))


def test_tensorboard_is_ours_and_other_reporters_are_passed_on():
    resolved = resolve({"report_to": ["tensorboard", "none"]})
    assert build_arguments(resolved, task_for(TaskType.SEQ_CLS), Path("o")).report_to == []


def test_one_of_several_gpus_is_used_and_no_batch_is_split(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    resolved = resolve({"use_cpu": False, "per_device_train_batch_size": 8}, "SEQ_CLS")
    arguments = build_arguments(resolved, task_for(TaskType.SEQ_CLS), tmp_path)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)


@pytest.mark.parametrize(
    "training",
    [
        {"accelerator_config": "("},
        {"accelerator_config": {"split_batches": 3, "nonsense": 1}},
        {"lr_scheduler_kwargs": "("},
        {"optim_args": "x"},
        {"report_to": "wandbb"},
        {"report_to": ["wandb"]},
    ],
)
def test_other_values_that_transformers_cannot_take_are_a_sentence(training, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    try:
        values = resolve(training)
        build_arguments(values, task_for(TaskType.SEQ_CLS), Path("o"))
    except ConfigError as error:
        assert "training" in str(error) and "\n" not in str(error)
    else:
        assert "optim_args" in training  # the optimizer reads them


def test_a_service_that_is_not_installed_is_reported_before_anything_is_loaded(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        build_arguments(resolve({"report_to": "wandb"}), task_for(TaskType.SEQ_CLS), Path("o"))
    message = str(caught.value)
    assert message.startswith("training.report_to: got 'wandb', whose package is not installed,")
    assert message.endswith(
        "the run directory has TensorBoard's files and metrics.jsonl in any case."
    )


def test_without_a_schedule_nothing_is_evaluated_saved_or_reported():
    given = {"early_stopping_patience": 2, "report_to": ["wandb"], "eval_strategy": "steps"}
    assert without_schedule({**given, "seed": 3}) == {
        "seed": 3,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }


def test_a_threshold_alone_would_stop_nothing():
    with pytest.raises(ConfigError, match=r"early_stopping_threshold=0\.1 stops nothing without"):
        resolve({"early_stopping_threshold": 0.1})


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("cosine_with_min_lr", {}, "One of min_lr or min_lr_rate should be set"),
        ("polynomial", {"lr_end": 1.0}, "must be smaller than initial lr"),
        ("linear", {"min_lr": 0.1}, "unexpected keyword argument 'min_lr'"),
    ],
)
def test_a_schedule_is_tried_before_anything_is_loaded(name, kwargs, said, tmp_path):
    training = {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}
    with pytest.raises(ConfigError, match=f"lr_scheduler_type={name} does not go with .*{said}"):
        build_arguments(resolve(training), task_for(TaskType.SEQ_CLS), tmp_path)


def test_every_scheduler_can_be_chosen(tmp_path):
    needed = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 10},
    }
    for scheduler in SchedulerType:
        kwargs = needed.get(scheduler.value, {})
        training = {"lr_scheduler_type": scheduler.value, "lr_scheduler_kwargs": kwargs}
        build_arguments(resolve(training), task_for(TaskType.SEQ_CLS), tmp_path)
