"""Training on examples that are read when they are needed."""

import json
from pathlib import Path

import pytest

from fixtures.preferences import PAIRS, VOTES, preference_recipe
from fixtures.runs import adapter_bytes, untimed_metrics
from lorakit.data import stream
from lorakit.errors import ConfigError, DataError
from lorakit.recipes.recipe import Recipe
from lorakit.training import train
from lorakit.training.preview import dry_run


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(stream, "_PART_EXAMPLES", 5)


@pytest.fixture
def streamed(recipe, prompt_jsonl):
    def make(output="run", data=(), **training):
        given = {"train": prompt_jsonl, "streaming": True, "shuffle_buffer": 6}
        given |= {"max_validation_rows": 4, **dict(data)}
        return recipe(output, data=given, training={"max_steps": 8, **training})

    return make


def test_a_resumed_stream_goes_on_with_the_same_bits(streamed, stop_after):
    steps = {"save_steps": 3, "save_strategy": "steps", "gradient_accumulation_steps": 2}
    whole = train(streamed("whole", **steps))
    with stop_after(5):
        train(streamed("resumed", **steps))
    resumed = train(streamed("resumed", **steps), resume=True)

    assert whole.steps == 8
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert untimed_metrics(resumed)[-1] == untimed_metrics(whole)[-1]


def test_what_is_trained_on_is_read_when_needed_and_said(streamed, prompt_jsonl, tmp_path):
    path = tmp_path / "long.jsonl"
    lines = Path(prompt_jsonl).read_text().splitlines()
    path.write_text("\n".join([*lines * 100, "not JSON"]))
    events = {}
    made = streamed(data={"train": str(path)}, max_steps=2)
    result = train(made, on_event=lambda name, payload: events.setdefault(name, payload))
    dry = dry_run(streamed("dry", data={"train": str(path)}, max_steps=2))

    assert events["data"]["train_examples"] is None and dry.train_examples is None
    assert dry.steps == 2 and len(dry.preview_examples) == 2
    report = (result.run_dir / "report.md").read_text()
    assert "| training | read when needed |" in report
    written = json.loads((result.run_dir / "environment.json").read_text())
    assert written["lineage"]["data"] == [{"name": str(path), "sha256": None}]


def test_an_example_that_is_wrong_is_named_when_it_is_read(streamed, prompt_jsonl, tmp_path):
    path = tmp_path / "long.jsonl"
    lines = Path(prompt_jsonl).read_text().splitlines()
    wrong = json.dumps({key: None for key in json.loads(lines[0])})
    many = (lines * 100)[:1100]
    path.write_text("\n".join([*many, wrong, *many]))

    with pytest.raises(DataError, match=r"is empty in example 1101 \(line 1101\)"):
        train(streamed(data={"train": str(path)}, max_steps=30, per_device_train_batch_size=50))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training.max_steps": -1}, "data.streaming=true needs training.max_steps"),
        ({"data.max_train_rows": 5}, "cannot go with data.max_train_rows; leave one"),
        ({"training.packing": True, "data.max_length": 64}, "cannot go with training.packing"),
        (
            {"training.train_sampling_strategy": "group_by_length"},
            "cannot go with training.train_sampling_strategy=group_by_length",
        ),
        ({"training.dataloader_num_workers": 2}, "training.dataloader_num_workers"),
        ({"search": {}}, "cannot go with search"),
    ],
)
def test_what_needs_all_examples_first_cannot_be_streamed(streamed, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        streamed().with_changes(changes, "the test")


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_preferences_are_streamed(tiny_llama_dir, tmp_path, kind):
    rows = PAIRS
    if kind == "kto":  # also parts whose votes are of one kind
        rows = [*VOTES[:4], *sorted(VOTES, key=lambda row: row["label"])]
    made = preference_recipe(
        tmp_path,
        tiny_llama_dir,
        rows,
        {"type": kind},
        streaming=True,
        shuffle_buffer=6,
        max_validation_rows=4,
        training={"max_steps": 4, "use_cpu": True, "num_train_epochs": 2},
    ).with_changes({"output": str(tmp_path / "run")}, "the test")
    events = {}
    result = train(made, on_event=lambda name, payload: events.setdefault(name, payload))

    assert result.steps == 4
    assert events["data"]["train_examples"] is None
    assert not (result.run_dir / "reference.safetensors").exists()


def test_only_texts_to_continue_are_streamed(cls_csv, tiny_distilbert_dir, tmp_path):
    values = {
        "model": tiny_distilbert_dir,
        "task": "SEQ_CLS",
        "data": {"train": cls_csv, "streaming": True},
        "training": {"max_steps": 3},
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match=r"data\.streaming=true cannot go with task SEQ_CLS"):
        Recipe.check(values, "the test")


def test_streamed_examples_are_not_ranked(streamed, recipe):
    from lorakit.training.influence.blame import require_all_read

    require_all_read(recipe())
    with pytest.raises(ConfigError, match=r"cannot be ranked: got data\.streaming=true"):
        require_all_read(streamed())


def test_trials_run_for_epochs_and_refuse_streams(streamed):
    from lorakit.recipes.search_sections import SearchConfig
    from lorakit.tuning.trial import trial_recipe

    with pytest.raises(ConfigError, match=r"Trials run for epochs.*data.streaming=true"):
        trial_recipe(streamed(), SearchConfig(), 10)
