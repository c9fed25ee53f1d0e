"""The mixin: adapters alone are saved, and a resumed run has the bits of one never stopped."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lorakit.adapters import adapter_state_dict
from lorakit.config import LoraConfig
from lorakit.errors import TrainingError
from lorakit.injection import add_adapter
from lorakit.recipes import checkpoints
from lorakit.training.evaluation_metrics import final_metrics, is_speed
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin, _mark_as_adapted
from lorakit.training.trainers.step_trainer import ClassifierTrainer
from tolerances import largest_error

ROWS = 22


class AdapterTrainer(AdapterTrainerMixin, ClassifierTrainer):
    pass


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing after it runs."""


class KillAfter(TrainerCallback):
    """Ends training after an optimizer step, before anything of that step is logged or saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(ROWS):
        ids = torch.randint(5, 40, (6,), generator=generator)
        made.append({"input_ids": ids, "labels": int(ids[0] > 22)})
    return made


@pytest.fixture
def build(tiny_llama_dir, tmp_path, rows):
    def make(name="run", *, eval_rows=None, bias="none", callbacks=(), kind=None, **options):
        set_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny_llama_dir, num_labels=2, attention_dropout=0.2
        )
        config = LoraConfig(r=4, lora_dropout=0.3, bias=bias, task_type="SEQ_CLS")
        add_adapter(model, config)
        lora_plus_ratio = options.pop("lora_plus_ratio", None)
        arguments = TrainingArguments(
            **{
                "output_dir": str(tmp_path / name),
                "use_cpu": True,
                "disable_tqdm": True,
                "report_to": "none",
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 2,
                "learning_rate": 5e-3,
                "save_strategy": "steps",
                "save_steps": 3,
                "logging_steps": 2,
                "logging_nan_inf_filter": False,
                "restore_callback_states_from_checkpoint": True,
                **options,
            }
        )
        arguments.lora_plus_ratio = lora_plus_ratio
        return (kind or AdapterTrainer)(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=eval_rows or rows[:6],
            callbacks=list(callbacks),
        )

    return make


def bits(trainer):
    tensors = adapter_state_dict(trainer.model)
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


def logged(trainer):
    """The logged rows, without those that tell of this session's speed."""
    return [
        {key: value for key, value in row.items() if not is_speed(key)}
        for row in trainer.state.log_history
    ]


def kill_and_resume(build, at, **options):
    """Kill a run after step `at`, then resume it in a fresh trainer."""
    killed = build("stopped", callbacks=[KillAfter(at)], **options)
    with pytest.raises(Killed):
        killed.train()
    newest = checkpoints.newest_complete(_path(killed))
    resumed = build("stopped", **options)
    output = resumed.train(resume_from_checkpoint=str(newest))
    return resumed, output, newest


def _path(trainer):
    return Path(trainer.args.output_dir)


def test_a_checkpoint_holds_the_adapter_and_not_the_base(build):
    trainer = build(max_steps=3)
    trainer.train()
    checkpoint = _path(trainer) / "checkpoint-3"
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    assert tensors.keys() == adapter_state_dict(trainer.model).keys()
    assert not list(checkpoint.glob("model*.safetensors"))
    assert not checkpoints.problems(checkpoint)


@pytest.mark.parametrize(
    ("at", "options"),
    [
        (4, {}),  # newest checkpoint in the middle of the first epoch
        (10, {"bias": "all", "num_train_epochs": 3}),  # in the middle of the third
        (5, {"save_strategy": "epoch"}),  # at the end of an epoch
        (7, {"train_sampling_strategy": "group_by_length"}),
        # The order is drawn from the global random state.
        (7, {"accelerator_config": {"use_seedable_sampler": False}}),
        (7, {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_steps": 9}),
        (7, {"lora_plus_ratio": 8.0, "lr_scheduler_type": "cosine"}),
        (7, {"neftune_noise_alpha": 5.0}),
        (5, {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 3}),
    ],
)
def test_a_resumed_run_has_the_bits_of_one_never_stopped(build, at, options):
    straight = build("straight", **options)
    expected = straight.train()
    resumed, output, newest = kill_and_resume(build, at, **options)
    assert newest is not None
    assert bits(resumed) == bits(straight)
    assert logged(resumed) == logged(straight)
    assert output.training_loss == expected.training_loss
    one, other = (t.optimizer.state_dict()["state"] for t in (straight, resumed))
    for index, state in one.items():
        assert all(torch.equal(value, other[index][key]) for key, value in state.items())


def test_a_run_killed_twice_in_one_epoch_keeps_its_order(build):
    options = {"train_sampling_strategy": "group_by_length", "save_steps": 2}
    straight = build("straight", **options)
    straight.train()
    for kill_at, checkpoint in ((5, None), (7, "checkpoint-4")):  # 4 is the end of an epoch
        killed = build("stopped", callbacks=[KillAfter(kill_at)], **options)
        resume = checkpoint and str(_path(killed) / checkpoint)
        with pytest.raises(Killed):
            killed.train(resume_from_checkpoint=resume)
    resumed = build("stopped", **options)
    resumed.train(resume_from_checkpoint=str(_path(killed) / "checkpoint-6"))
    assert bits(resumed) == bits(straight)


def test_dropout_and_shuffling_make_the_comparison_mean_something(build):
    first = build("a", max_steps=2)
    first.train()
    second = build("b", max_steps=2, seed=4)
    second.train()
    assert bits(first) != bits(second)


def test_early_stopping_goes_on_counting_after_a_resume(build):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "learning_rate": 0.0,  # never any progress
    }
    trainer = build(callbacks=[EarlyStoppingCallback(4), KillAfter(3)], **options)
    with pytest.raises(Killed):
        trainer.train()
    newest = checkpoints.newest_complete(_path(trainer))
    resumed = build(callbacks=[EarlyStoppingCallback(4)], **options)
    assert resumed.train(resume_from_checkpoint=str(newest)).global_step == 5  # best 1, patience 4

    # Killed between its last checkpoint and its end, it has nothing left to train.
    again = build(callbacks=[EarlyStoppingCallback(4)], **options)
    assert again.train(resume_from_checkpoint=str(_path(again) / "checkpoint-5")).global_step == 5


@pytest.mark.parametrize("last", [3, 4])  # in the middle and at the end of an epoch
def test_a_run_at_its_last_step_trains_no_further(build, last):
    trainer = build(max_steps=last)
    expected = trainer.train()
    again = build(max_steps=last)
    output = again.train(resume_from_checkpoint=str(_path(trainer) / f"checkpoint-{last}"))
    assert output.global_step == last
    assert output.training_loss == expected.training_loss
    assert bits(again) == bits(trainer)


def test_the_best_checkpoint_is_loaded_at_the_end_even_after_the_run_has_moved(build, rows):
    options = {
        # Learning what the other rows teach makes these worse, so that the best step comes first.
        "eval_rows": [{**row, "labels": 1 - row["labels"]} for row in rows],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "num_train_epochs": 6,
        "learning_rate": 1e-2,
        "save_total_limit": 2,
    }
    straight = build("straight", **options)
    straight.train()
    best = straight.state.best_global_step
    last = straight.state.global_step
    assert best not in (None, last), "the test needs a best step that is not the last"
    saved = load_file(_path(straight) / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in adapter_state_dict(straight.model).items())
    rows = [row for row in straight.state.log_history if row["step"] == best]
    assert final_metrics(straight)["eval_loss"] == next(
        row["eval_loss"] for row in rows if "eval_loss" in row
    )

    moved = _path(straight).rename(_path(straight).parent / "moved")
    resumed = build("moved", **options)
    resumed.train(resume_from_checkpoint=str(moved / f"checkpoint-{last}"))
    assert resumed.state.best_model_checkpoint == str(moved / f"checkpoint-{best}")
    assert bits(resumed) == bits(straight)


def test_old_checkpoints_go_only_when_the_new_one_is_complete(build, monkeypatch):
    trainer = build(max_steps=6, save_steps=3, save_total_limit=1)
    seal = checkpoints.seal

    def torn(checkpoint):
        if checkpoints.step_of(checkpoint) == 6:
            raise Killed
        seal(checkpoint)

    monkeypatch.setattr(checkpoints, "seal", torn)
    with pytest.raises(Killed):
        trainer.train()
    assert checkpoints.newest_complete(_path(trainer)).name == "checkpoint-3"
    assert [p.name for p in checkpoints.remove_incomplete(_path(trainer))] == ["checkpoint-6"]
    monkeypatch.setattr(checkpoints, "seal", seal)
    resumed = build(max_steps=6, save_steps=3, save_total_limit=1)
    resumed.train(resume_from_checkpoint=str(_path(trainer) / "checkpoint-3"))
    assert [p.name for p in checkpoints.checkpoint_directories(_path(trainer))] == ["checkpoint-6"]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(build, use_reentrant):
    plain = build("plain", max_steps=3)
    plain.train()
    saving = build(
        "saving",
        max_steps=3,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": use_reentrant},
    )
    saving.train()
    expected = adapter_state_dict(plain.model)
    for key, tensor in adapter_state_dict(saving.model).items():
        # A reentrant checkpoint's first pass wants no gradients, and may add up in another order.
        assert largest_error(tensor, expected[key]) <= (1e-4 if use_reentrant else 0.0), key


def test_a_loss_that_is_not_a_number_stops_the_run(build):
    class Broken(AdapterTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * (float("nan") if self.state.global_step == 1 else 1.0)

    with pytest.raises(
        TrainingError, match=r"The loss is nan on step 2, expected a number\. Lower training\.learn"
    ):
        build(kind=Broken).train()


def test_zero_gradients_stop_the_run_on_its_first_step(build):
    class Zero(AdapterTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * 0.0

    with pytest.raises(TrainingError, match="All gradients are zero on step 1, for 28 LoRA"):
        build(kind=Zero).train()


def test_an_adapter_outside_the_loss_is_reported(build):
    trainer = build()
    trainer.model.score.requires_grad_(False)
    trainer.model.forward = lambda **inputs: {"loss": torch.zeros(())}
    with pytest.raises(TrainingError, match="does not depend on any trained parameter"):
        trainer.train()


def test_running_sums_are_plain_json(build):
    trainer = build(max_steps=3)
    trainer.train()
    (sums,) = json.loads((_path(trainer) / "checkpoint-3" / "running_sums.json").read_text())
    assert sums["last_logged_step"] == 2
    assert sums["loss_since_log"] > 0


def test_no_readme_and_no_telemetry(build, monkeypatch):
    trainer = build(max_steps=1)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", None)
    trainer._send_telemetry()
    trainer.create_model_card(model_name="x")
    assert not (_path(trainer) / "README.md").exists()


def test_final_metrics_without_validation():
    assert final_metrics(SimpleNamespace(eval_dataset=None)) == {}


@pytest.mark.parametrize("is_quantized", [True, False])
def test_only_a_quantized_base_is_marked_and_only_for_a_while(is_quantized):
    model = SimpleNamespace(is_quantized=is_quantized)
    with pytest.raises(ZeroDivisionError), _mark_as_adapted(model):
        assert hasattr(model, "_hf_peft_config_loaded") == is_quantized
        raise ZeroDivisionError
    assert vars(model) == {"is_quantized": is_quantized}
