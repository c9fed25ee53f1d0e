"""`lorakit train A B --together`: what it shows, writes and refuses."""

import yaml

from fixtures.printed import flat
from forked import run_together
from lorakit.recipes.run_directory import RunDirectory


def recipes(cls_recipe, *changes):
    """Write a recipe for each change beside the first one; return their paths."""
    values = yaml.safe_load(cls_recipe.read_text())
    paths = []
    for number, change in enumerate(changes):
        path = cls_recipe.parent / f"{number}.yaml"
        output = str(cls_recipe.parent / f"run-{number}")
        path.write_text(yaml.safe_dump({**values, "output": output, **change}))
        paths.append(path)
    return paths


def test_two_recipes_train_together(cli, cls_recipe):
    paths = recipes(cls_recipe, {}, {"lora": {"r": 4}})
    result = cli("train", *paths, "--together", "training.max_steps=2", "training.logging_steps=1")
    assert result.exit_code == 0, result.output
    words = flat(result.stdout)
    assert "2 runs on" in words
    for run in ("run-0", "run-1"):
        assert f"{run} step 2/2 epoch" in words
        assert (cls_recipe.parent / run / "report.md").is_file()
    assert words.count("Trained 2 steps in") == 2
    assert "together" in words


def test_a_finished_group_has_nothing_to_resume(cli, cls_recipe):
    paths = recipes(cls_recipe, {}, {"lora": {"r": 4}})
    assert cli("train", *paths, "--together", "training.max_steps=1").exit_code == 0
    result = cli("train", *paths, "--together", "--resume", "training.max_steps=1")
    assert result.exit_code == 2, "as alone"
    assert result.stderr.count("Nothing to resume in") == 2


def test_recipes_that_differ_are_refused_before_anything_is_written(cli, cls_recipe):
    paths = recipes(cls_recipe, {}, {"dtype": "bfloat16"})
    result = cli("train", *paths, "--together")
    assert result.exit_code == 2
    assert "dtype is " in flat(result.stderr) and '"bfloat16" in the run of' in flat(result.stderr)
    assert "leave --together out" in flat(result.stderr)
    assert not (cls_recipe.parent / "run-0").exists()


def test_the_same_output_twice_is_refused(cli, cls_recipe):
    result = cli("train", cls_recipe, cls_recipe, "--together")
    assert result.exit_code == 2
    assert "twice, expected a directory for each run" in flat(result.stderr)


def test_options_of_single_runs_are_refused(cli, cls_recipe):
    for option in (["--dry-run"], ["--ray", "2"]):
        result = cli("train", cls_recipe, "--together", *option)
        assert result.exit_code == 2
        assert f"got {option[0]} too" in flat(result.stderr)


def test_a_second_recipe_without_the_option_is_named(cli, cls_recipe):
    result = cli("train", cls_recipe, cls_recipe)
    assert result.exit_code == 2
    assert "--together" in flat(result.stderr)


TRAINS = "from lorakit.__main__ import main\nmain()"


def test_of_several_processes_each_trains_its_runs(cls_recipe):
    paths = recipes(cls_recipe, {}, {"lora": {"r": 4}}, {"lora": {"r": 3}})
    training = ["training.max_steps=2", "training.use_cpu=true"]
    ended = run_together(TRAINS, "train", *paths, "--together", *training)
    assert [one.returncode for one in ended] == [0, 0], [one.stderr for one in ended]
    first, second = (flat(one.stdout) for one in ended)
    assert "2 runs on" in first and "1 runs on" in second
    assert first.count("Trained 2 steps in") == 2 and second.count("Trained 2 steps in") == 1
    assert "run-1 finished" in second and "run-1" not in first
    for number in range(3):
        run = RunDirectory.open(cls_recipe.parent / f"run-{number}")
        assert run.is_finished and run.processes == 1


def test_a_launcher_that_shards_is_refused(cli, cls_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    result = cli("train", *recipes(cls_recipe, {}, {"lora": {"r": 4}}), "--together")
    assert result.exit_code == 2
    assert "got a launcher that shards the model" in flat(result.stderr)
