"""`dtype: auto`: chosen once, recorded, and the same in all that uses the run."""

import json
from pathlib import Path

import pytest
import yaml

from fixtures.runs import adapter_bytes
from lorakit.planning import plan
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training import dry_run, dtype_choice, setup, train
from lorakit.training.dtype_choice import AUTOCAST, FLOAT32
from lorakit.training.evaluation import evaluate
from lorakit.tuning.driver import open_directory, with_chosen_dtype


@pytest.fixture(autouse=True)
def multiplies_bfloat16(monkeypatch):
    """Let this CPU have instructions for bfloat16."""
    monkeypatch.setattr(dtype_choice, "has_dtype", lambda dtype, device: True)


@pytest.fixture
def pretend(monkeypatch):
    """Replace the measurement by given speeds of the second precision; returns the calls."""
    calls = []

    def speed(factor):
        def times(models, *others):
            calls.append(tuple(models))
            return {p: 1.0 if p == FLOAT32 else 1.0 / factor for p in models}

        monkeypatch.setattr(setup, "time_precisions", times)
        return calls

    return speed


@pytest.fixture
def base_in_bfloat16(tiny_llama_dir, tmp_path_factory):
    """Directory of a base in bfloat16, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tmp_path_factory.mktemp("bases") / "bfloat16")
    AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(folder)
    return folder


def notes_of(recipe, **options):
    """Train, and return the result and the lines on the dtype."""
    notes = []

    def listen(name, payload):
        if name == "dtype":
            notes.append(payload["note"])

    return train(recipe, on_event=listen, **options), notes


@pytest.mark.parametrize(
    ("factor", "precision"), [(2.0, AUTOCAST), (0.5, FLOAT32)], ids=["autocast", "float32"]
)
def test_the_choice_is_told_recorded_and_trains_as_if_it_had_been_named(
    recipe, pretend, factor, precision
):
    calls = pretend(factor)
    result, notes = notes_of(recipe(dtype="auto"))
    assert calls == [(FLOAT32, AUTOCAST)]
    assert len(notes) == 1 and notes[0].startswith(f"dtype: {precision}, ")
    run = RunDirectory(result.run_dir)
    recorded = run.recipe()
    assert (recorded.dtype, recorded.training["bf16"]) == ("float32", precision.autocasts)
    assert yaml.safe_load(run.recipe_file.read_text())["dtype"] == "float32"
    facts = json.loads(run.environment_file.read_text())["dtype"]
    assert facts["auto"] == str(precision)
    assert facts["step_cpu_s"]["float32"] == 1.0
    named = train(recipe("named", dtype="float32", training={"bf16": precision.autocasts}))
    assert adapter_bytes(named) == adapter_bytes(result)


def test_a_bfloat16_base_stays_one_in_all_that_uses_the_run(recipe, pretend, base_in_bfloat16):
    pretend(1.6)
    result, notes = notes_of(recipe(dtype="auto", model=base_in_bfloat16))
    assert notes == ["dtype: bfloat16, 1.6 times as fast as float32 on this machine"]
    assert RunDirectory(result.run_dir).recipe().dtype == "bfloat16"
    assert json.loads((result.adapter_path / "lorakit.json").read_text())["dtype"] == "bfloat16"
    named = train(recipe("named", dtype="bfloat16", model=base_in_bfloat16))
    assert adapter_bytes(named) == adapter_bytes(result)
    calls = pretend(0.5)
    again = evaluate(result.run_dir, recipe=recipe(dtype="auto", model=base_in_bfloat16))
    assert again["eval_loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-4)
    assert len(calls) == 1  # that of the training


def test_a_resumed_run_keeps_its_dtype_and_says_so(recipe, pretend, stop_after):
    calls = pretend(2.0)
    often = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    with stop_after(2):
        train(recipe(dtype="auto", training=often))
    pretend(0.5)  # now float32 would be quicker
    result, notes = notes_of(recipe(dtype="auto", training=often), resume=True)
    recipe_file = RunDirectory(result.run_dir).recipe_file
    assert notes == [
        f"dtype: float32 with products in bfloat16, as recorded in {recipe_file}; "
        "not measured again"
    ]
    assert len(calls) == 1
    assert RunDirectory(result.run_dir).recipe().training["bf16"] is True
    whole = train(recipe("whole", dtype="float32", training={**often, "bf16": True}))
    assert adapter_bytes(whole) == adapter_bytes(result)


def test_auto_in_a_run_of_an_older_version_is_the_saved_dtype(recipe, pretend, stop_after):
    calls = pretend(2.0)
    often = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    with stop_after(2):
        train(recipe(training=often))
    file = RunDirectory(Path(recipe().output)).recipe_file
    file.write_text(file.read_text().replace("dtype: saved", "dtype: auto"))
    assert "dtype: auto" in file.read_text()
    result, notes = notes_of(Recipe.load(file), resume=True)
    assert notes == [f"dtype: saved, as recorded in {file}; not measured again"]
    assert calls == []
    assert RunDirectory(result.run_dir).recipe().dtype == "saved"


def test_a_dry_run_measures_nothing_and_says_what_training_will(recipe, pretend):
    calls = pretend(2.0)
    seen = dry_run(recipe(dtype="auto"))
    assert calls == []
    assert seen.dtypes["base"] == "float32"
    assert seen.notes[0] == (
        "dtype: float32, until training times it against the others, on this device, and takes "
        "the fastest"
    )


def test_a_plan_is_for_the_larger_and_says_so(recipe, base_in_bfloat16):
    planned = plan(recipe(dtype="auto", model=base_in_bfloat16), device="cpu")
    larger = plan(recipe(dtype="float32", model=base_in_bfloat16), device="cpu")
    assert planned.peak_bytes == larger.peak_bytes
    assert any(note.startswith("dtype: float32, until training") for note in planned.notes)
    on_gpu = plan(recipe(dtype="auto", model=base_in_bfloat16), device="cuda")
    assert any(note.startswith("dtype: bfloat16, because this GPU") for note in on_gpu.notes)
    assert on_gpu.base_weights_bytes < planned.base_weights_bytes


def test_all_trials_of_a_search_have_one_dtype(recipe, pretend):
    calls = pretend(2.0)
    searched = recipe("search", dtype="auto")
    directory = open_directory(searched, "search", resume=False)
    events = []
    chosen = with_chosen_dtype(searched, directory, lambda *event: events.append(event))
    assert (chosen.dtype, chosen.training["bf16"]) == ("float32", True)
    assert [name for name, _ in events] == ["dtype"]
    directory.path.mkdir()
    directory.recipe_file.write_text(chosen.to_yaml())
    pretend(0.5)
    directory = open_directory(searched, "search", resume=True)
    again = with_chosen_dtype(searched, directory, None)
    assert (again.dtype, again.training["bf16"]) == ("float32", True)
    assert len(calls) == 1


def test_the_measurement_itself_runs(recipe):
    result, notes = notes_of(recipe(dtype="auto"))
    assert RunDirectory(result.run_dir).recipe().dtype == "float32"
    assert "on this machine" in notes[0]
