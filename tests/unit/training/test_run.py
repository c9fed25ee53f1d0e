"""One road from a recipe to a run directory, and what stands in the way where it fails."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fixtures.runs import adapter_bytes, untimed_metrics
from lorakit.adapters import load_adapter
from lorakit.cli.views.training import RunView
from lorakit.errors import (
    ConfigError,
    DataError,
    MissingFileError,
    OutputExistsError,
    TargetError,
    TrainingError,
)
from lorakit.recipes import checkpoints
from lorakit.training import RunDirectory, evaluate, train
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin


def test_a_run_directory_is_whole(done):
    result, _ = done
    names = {path.name for path in result.run_dir.iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoint-5",
        "checkpoint-10",
        "adapter",
        "loss.png",
        "report.md",
        "verdict.json",
    }
    assert all(path.exists() for path in result.files)
    assert RunDirectory.open(result.run_dir).is_finished
    assert {p.name for p in result.adapter_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert list((result.run_dir / "tensorboard").iterdir())


def test_the_adapter_names_its_base_and_loads_into_it(done, tiny_llama_dir):
    from transformers import AutoModelForCausalLM

    result, _ = done
    config = json.loads((result.adapter_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_llama_dir
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    injection = load_adapter(model, result.adapter_path)
    assert len(injection.matches) == 4


def test_metrics_are_written_down_and_handed_back(done):
    result, _ = done
    rows = RunDirectory.open(result.run_dir).metrics()
    assert {row["event"] for row in rows} == {"step", "evaluation", "summary"}
    evaluations = [row for row in rows if row["event"] == "evaluation"]
    assert [row["step"] for row in evaluations] == [5, 10]
    best = min(evaluations, key=lambda row: row["eval_loss"])
    assert result.metrics["eval_loss"] == best["eval_loss"]
    assert result.steps == 10
    assert result.train_loss == rows[-1]["train_loss"]
    assert [row["wall_s"] for row in rows] == sorted(row["wall_s"] for row in rows)
    assert not any("runtime" in key or "per_second" in key for row in rows for key in row)


def test_speed_and_memory_are_logged_beside_the_loss_and_the_plan_is_kept(recipe):
    result = train(recipe(), planned_bytes=123_000)
    run = RunDirectory.open(result.run_dir)
    steps = [row for row in run.metrics() if row["event"] == "step"]
    assert all(row["train_tokens_per_s"] > 0 for row in steps)
    peaks = [row["peak_memory_bytes"] for row in steps]
    assert peaks == sorted(peaks)
    assert json.loads(run.environment_file.read_text())["planned_bytes"] == 123_000


def test_events_tell_how_far_it_is(done):
    result, events = done
    names = [name for name, _ in events]
    assert names[:3] == ["injected", "data", "run_opened"]
    assert names[-1] == "finished"
    assert events[-1][1] == {"result": result}
    steps = [payload for name, payload in events if name == "step"]
    assert [payload["step"] for payload in steps if not payload["logged"]] == list(range(1, 11))
    assert names.count("evaluation") == names.count("checkpoint") == 2
    assert dict(events)["data"]["train_examples"] == 18
    assert dict(events)["data"]["validation_examples"] == 6


def test_training_arguments_that_nobody_wrote_are_in_the_recipe(done):
    training = RunDirectory.open(done[0].run_dir).recipe().training
    assert training["seed"] == 42
    assert training["bf16"] is False
    assert training["metric_for_best_model"] == "eval_loss"


def test_the_base_is_never_written_to(tiny_llama_dir, recipe, monkeypatch):
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).state_dict()
    kept = []
    whole = AdapterTrainerMixin.__init__

    def remember(self, *args, **kwargs):
        kept.append(kwargs["model"])
        whole(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainerMixin, "__init__", remember)
    train(recipe())
    after = kept[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert kept[0].config.use_cache is True  # given back after training


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lora": {"target_modules": ["q_porj"]}}, TargetError, "q_porj"),
        ({"data": {"train": "nowhere.csv"}}, MissingFileError, "nowhere.csv"),
        ({"model": "no/such/model"}, MissingFileError, "no/such/model"),
        (
            {"training": {"load_best_model_at_end": True, "save_strategy": "no"}},
            ConfigError,
            "The training arguments do not fit together: --load_best_model_at_end requires",
        ),
        (
            {"training": {"fp16": True}},
            ConfigError,
            "training.fp16 needs a GPU: got true on a CPU",
        ),
        (
            {"training": {"early_stopping_patience": 1, "save_strategy": "no"}},
            ConfigError,
            "training.early_stopping_patience needs the best checkpoint",
        ),
    ],
)
def test_what_is_wrong_is_reported_before_anything_is_written(
    recipe, tmp_path, changes, error, message
):
    with pytest.raises(error) as caught:
        train(recipe(**changes))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_empty_data_is_reported_before_anything_is_written(recipe, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError):
        train(recipe(data={"train": str(tmp_path / "none.jsonl")}))
    assert not (tmp_path / "run").exists()


def test_without_validation_rows_nothing_may_ask_for_them(recipe, prompt_jsonl):
    data = {"train": prompt_jsonl, "validation_fraction": 0}
    asking = recipe(data=data, training={"early_stopping_patience": 2, "eval_strategy": "epoch"})
    with pytest.raises(ConfigError) as caught:
        train(asking)
    assert str(caught.value) == (
        "There is no validation data for training.eval_strategy, training.early_stopping_patience: "
        "data.validation is not given and data.validation_fraction is 0. Set one of the two."
    )
    result = train(recipe(data=data))
    assert result.metrics == {}
    assert "last step" in (result.run_dir / "report.md").read_text()
    with pytest.raises(ConfigError, match="There are no examples to evaluate on"):
        evaluate(result.run_dir)


def test_a_run_that_cannot_learn_leaves_nothing_behind(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AdapterTrainerMixin, "_get_grad_norm", lambda self, model, grad_norm=None: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(recipe())
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_says_what_to_lower(recipe, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(AdapterTrainerMixin, "training_step", full)
    with pytest.raises(TrainingError) as caught:
        train(recipe())
    assert str(caught.value).startswith(
        "Memory ran out with training.per_device_train_batch_size=4. Halve it and double"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failure_after_a_checkpoint_is_written_down_until_the_run_is_resumed(recipe, monkeypatch):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = AdapterTrainerMixin.training_step

    def full(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB.")
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainerMixin, "training_step", full)
        with pytest.raises(TrainingError):
            train(recipe(training=saving))
    run = RunDirectory.open(recipe().output)
    (sentence,) = json.loads(run.failure_file.read_text())["message"]
    assert sentence.startswith("Memory ran out with training.per_device_train_batch_size=4.")
    train(recipe(training=saving), resume=True)
    assert run.is_finished and not run.failure_file.exists()


def test_a_finished_run_is_not_trained_again(done):
    recipe = RunDirectory.open(done[0].run_dir).recipe()
    with pytest.raises(OutputExistsError, match="it holds a finished run"):
        train(recipe)


def test_resuming_nothing_is_reported(recipe, tmp_path):
    with pytest.raises(MissingFileError, match=r"No run at .*: there is no such directory"):
        train(recipe(), resume=True)


def test_a_run_stopped_before_its_first_checkpoint_starts_over(recipe, stop_after):
    go_on = stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe())
    with pytest.raises(OutputExistsError, match=r"has not finished.*Continue it with `--resume`"):
        train(recipe())
    go_on()
    events = []
    resumed = train(recipe(), resume=True, on_event=lambda *event: events.append(event))
    opened = dict(events)["run_opened"]
    assert opened["resumed_from"] is None
    assert opened["note"] == "There is no complete checkpoint; starting from the beginning."
    straight = train(recipe("straight"))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)


def test_a_resumed_run_is_the_run_that_never_stopped(recipe, stop_after):
    steps = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8, "logging_steps": 3}
    go_on = stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(training=steps))
    go_on()
    run = RunDirectory.open(recipe().output)
    (run.path / "checkpoint-6").mkdir()  # as a kill in the middle of a save leaves it
    with run.metrics_file.open("a") as file:
        file.write('{"step": 5, "lo')
    events = []
    resumed = train(
        recipe(training=steps), resume=True, on_event=lambda *event: events.append(event)
    )
    opened = dict(events)["run_opened"]
    assert opened["resumed_from"].name == "checkpoint-4"
    assert {path.name: wrong for path, wrong in opened["removed"].items()} == {
        "checkpoint-6": "it has no manifest.json"
    }
    straight = train(recipe("straight", training=steps))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)
    assert resumed.metrics == straight.metrics


def test_data_that_changed_meanwhile_are_said(recipe, stop_after, prompt_jsonl, tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = Path(prompt_jsonl).read_text().splitlines()
    file.write_text("\n".join(lines))
    saving = {"save_strategy": "steps", "save_steps": 2}
    mine = recipe(data={"train": str(file), "validation_fraction": 0}, training=saving)
    go_on = stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(mine)
    go_on()
    assert checkpoints.newest_complete(Path(mine.output)) is not None
    before = file.stat()
    file.write_text("\n".join(reversed(lines)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    events = []
    train(mine, resume=True, on_event=lambda *event: events.append(event))
    note = dict(events)["run_opened"]["note"]
    assert note.startswith("The training examples have changed since the run started")


def test_a_finished_run_may_train_on_for_longer(recipe):
    epochs = {"max_steps": -1, "num_train_epochs": 1}
    first = train(recipe(training=epochs))
    before = adapter_bytes(first)
    longer = train(recipe(training={**epochs, "num_train_epochs": 2}), resume=True)
    assert longer.steps == 2 * first.steps
    assert adapter_bytes(longer) != before
    assert RunDirectory.open(longer.run_dir).recipe().training["num_train_epochs"] == 2


def test_a_run_killed_while_it_was_finishing_is_finished(recipe):
    straight = train(recipe())
    rows, bits = untimed_metrics(straight), adapter_bytes(straight)
    (straight.run_dir / "report.md").unlink()
    resumed = train(recipe(), resume=True)
    assert (untimed_metrics(resumed), adapter_bytes(resumed)) == (rows, bits)
    assert resumed.metrics == straight.metrics
    assert RunDirectory.open(resumed.run_dir).is_finished


def test_a_recipe_made_in_python_is_checked_too(recipe, tmp_path):
    wrong = recipe().model_copy(update={"training": {"learning_rate": "abc", "max_step": 1}})
    with pytest.raises(ConfigError) as caught:
        train(wrong)
    assert str(caught.value).startswith("the recipe has 2 problems:\n  training.learning_rate: got")
    assert list(tmp_path.iterdir()) == []


def test_early_stopping_ends_the_run_and_is_reported(recipe):
    result = train(
        recipe(
            training={
                "eval_strategy": "steps",
                "eval_steps": 1,
                "max_steps": 12,
                "learning_rate": 1e-9,
                "early_stopping_patience": 2,
                "early_stopping_threshold": 1.0,
            }
        )
    )
    assert result.steps == 3
    report = (result.run_dir / "report.md").read_text()
    assert "Early stopping ended the run." in report
    assert "3 of 12" in report


@pytest.mark.parametrize(
    "training",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
        {"gradient_accumulation_steps": 2},
        {"label_smoothing_factor": 0.1},
        {"packing": True},
    ],
)
def test_training_options_work(recipe, training):
    result = train(recipe(training={**training, "max_steps": 2}))
    tensors = load_file(result.adapter_path / "adapter_model.safetensors")
    assert all(tensor.count_nonzero() for name, tensor in tensors.items() if "lora_B" in name)


def test_a_note_of_the_trainer_is_an_event_and_printed_and_in_the_report(
    recipe, monkeypatch, capsys
):
    monkeypatch.setattr(
        "lorakit.training.trainers.language_trainer.find_output_loss",
        lambda *args, **options: (None, "it names no output layer"),
    )
    events = []
    result = train(recipe(), on_event=lambda name, payload: events.append((name, payload)))
    note = (
        "Each step computes the logits of all its tokens at once, because lorakit cannot follow "
        "this LlamaForCausalLM from its output layer to its loss: it names no output layer."
    )
    (notes,) = [payload["notes"] for name, payload in events if name == "notes"]
    assert notes.count(note) == 1  # beside those on batches and padding
    RunView()("notes", {"notes": (note,)})
    assert " ".join(capsys.readouterr().out.split()) == note
    assert note in (result.run_dir / "report.md").read_text(encoding="utf-8")
