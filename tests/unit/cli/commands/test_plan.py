"""`lorakit plan`, and what `lorakit train` does with a plan."""

import json

import pytest

from fixtures.printed import flat


def test_it_shows_the_parts_the_run_the_ways_and_a_picture(cli, cls_recipe, tmp_path):
    picture = tmp_path / "new" / "plan.png"
    result = cli("plan", cls_recipe, "--plot", picture)
    assert result.exit_code == 0, result.stderr
    words = flat(result.stdout)
    assert "Memory at the peak of a step, on cpu" in words
    for part in ("base weights", "trained weights", "optimizer state", "saved activations"):
        assert part in words
    assert "It fits:" in words
    assert "optimizer steps 3 epochs 1" in words
    assert "passes" not in words
    assert "batch 16 x 7 tokens. The longest of 43 examples, at most 32 tokens." in words
    header = next(line for line in result.stdout.splitlines() if "QLoRA" in line)
    assert header.split() == ["full", "fine-tuning", "LoRA", "QLoRA"]
    assert "What would save memory" not in words
    assert f"lorakit train {cls_recipe}" in words
    assert not (cls_recipe.parent / "run").exists()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in result.stdout


def test_what_does_not_fit_comes_with_what_would(cli, cls_recipe):
    result = cli("plan", cls_recipe, "--memory", "100MB")
    assert result.exit_code == 1, result.stderr
    assert "lorakit train" not in result.stdout
    words = flat(result.stdout)
    assert "It does not fit: it needs" in words and "of 100.0 MB" in words
    assert "training.activation_checkpointing=true" in words
    assert "training.optim=memory_mapped_adamw" in words
    tables = result.stdout.partition("Side by side")[2].partition("\nNext")[0]
    assert max(len(line) for line in tables.splitlines() if "=" not in line) <= 100


def test_json_is_an_object_and_nothing_else(cli, cls_recipe):
    result = cli("plan", cls_recipe, "--json", "--memory", "8GB", "lora.r=4")
    values = json.loads(result.stdout)
    assert list(values["depths"]) == ["all", "upper half"]
    assert values["memory_bytes"] == 8_000_000_000
    assert values["fits"] is True
    assert values["updates"] == 3
    assert values["peak_bytes"] == sum(values["at_peak"].values())


def test_measured_steps_stand_beside_the_plan(cli, cls_recipe):
    accumulated = "training.gradient_accumulation_steps=2"
    result = cli("plan", cls_recipe, "--measure", accumulated)
    assert result.exit_code == 0, result.stderr
    words = flat(result.stdout)
    assert "optimizer steps 2, each of 2 micro-batches" in words
    assert "Measured a step" in words
    assert "of the plan)" in words
    values = json.loads(cli("plan", cls_recipe, "--measure", "--json").stdout)
    assert values["run_s"] == pytest.approx(3 * values["step_s"])
    assert values["measured_peak_bytes"] == pytest.approx(values["peak_bytes"], rel=0.1)
    assert not (cls_recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "2"], "Cannot read the memory: got '2', expected a number and a unit"),
        (["--memory", "lots"], "Cannot read the memory: got 'lots', expected a number and a unit"),
        (["--device", "abacus"], "Cannot plan for the device 'abacus': expected cpu or cuda."),
        (["--processes", "0"], "Invalid value for '--processes'"),
        (["lora.r=none"], "lora.r"),
        (["lora.target_modules=[q_lim]"], "Did you mean 'q_lin'?"),
    ],
)
def test_bad_input_is_one_sentence(cli, cls_recipe, words, said):
    result = cli("plan", cls_recipe, *words)
    assert result.exit_code == 2
    assert said in flat(result.stderr)
    assert "Traceback" not in result.stderr


# ---- train ----
