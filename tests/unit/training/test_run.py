"""One road from a recipe to a run directory, and what stands in the way where it fails."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from lorakit.adapters import load_adapter
from lorakit.cli.views.training import RunView
from lorakit.errors import (
    ConfigError,
    DataError,
    MissingFileError,
    TargetError,
    TrainingError,
)
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
            "The training arguments do not fit together: training.load_best_model_at_end requires",
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


class Host:
    def __init__(self):
        self.asked = []

    def load_base(self, recipe, task, tokenizer, labels):
        self.asked.append("base")
        return task.load_base(recipe, tokenizer, labels)

    @contextmanager
    def training(self, setup, trainer, frozen):
        self.asked.append("training")
        assert frozen.blocks is None
        yield ("A note of the host.",)
        self.asked.append("trained")


def test_a_run_asks_its_host(recipe):
    host = Host()
    result = train(recipe(), host=host)
    assert host.asked == ["base", "training", "trained"]
    assert "A note of the host." in (result.run_dir / "report.md").read_text()
