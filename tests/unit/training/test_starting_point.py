"""Reading the adapter that a recipe starts from."""

import shutil

import pytest

from lorakit.errors import AdapterFileError, ConfigError, MissingFileError
from lorakit.training.starting_point import StartingPoint


@pytest.fixture
def start(done, recipe):
    """Make a recipe that starts from an adapter; `done` by default."""
    first = str(done[0].run_dir)
    return lambda path=first, **changes: recipe("second", lora={}, start_from=path, **changes)


def test_a_recipe_without_one_has_none(recipe):
    assert StartingPoint.of(recipe()) is None


def test_a_run_its_adapter_and_a_checkpoint_are_taken(done, start):
    found = [
        StartingPoint.of(start(str(path)))
        for path in (done[0].run_dir, done[0].adapter_path, done[0].run_dir / "checkpoint-10")
    ]
    assert all(one.tokenizer == done[0].adapter_path for one in found)
    assert len({one.sha256 for one in found[:2]}) == 1
    assert found[0].config == found[2].config


def test_the_copy_of_a_run_is_used_if_it_is_there(start, tmp_path):
    found = StartingPoint.of(start())
    found.copy_to(tmp_path / "kept")
    kept = StartingPoint.of(start("/nowhere/x"), tmp_path / "kept")
    assert kept.directory == tmp_path / "kept" and kept.sha256 == found.sha256
    assert kept.tokenizer == tmp_path / "kept"
    assert kept.changed_note() == (
        "start_from '/nowhere/x' no longer exists; the run has a copy of it."
    )
    with pytest.raises(MissingFileError, match="Cannot start from start_from '/nowhere/x': No ad"):
        StartingPoint.of(start("/nowhere/x"), tmp_path / "none")


def test_a_parent_that_changes_while_it_is_copied_is_refused(done, start, tmp_path):
    shutil.copytree(done[0].adapter_path, tmp_path / "parent")
    found = StartingPoint.of(start(str(tmp_path / "parent")))
    assert found.changed_note() is None
    with (tmp_path / "parent/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(AdapterFileError, match="changed while the run was prepared"):
        found.copy_to(tmp_path / "copy")
    assert "has changed since the run started" in found.changed_note()


def test_a_loftq_parent_needs_its_quantisation(done, start, tmp_path):
    run = tmp_path / "loftq"
    shutil.copytree(done[0].run_dir, run)
    text = (run / "recipe.yaml").read_text()
    changed = text.replace("init_lora_weights: true", "init_lora_weights: loftq")
    assert changed != text
    (run / "recipe.yaml").write_text(changed)
    settings = (run / "adapter/lorakit.json").read_text()
    settings = settings.replace("{", '{"quantization": {"bits": 4}, ', 1)
    (run / "adapter/lorakit.json").write_text(settings)
    with pytest.raises(ConfigError) as caught:
        StartingPoint.of(start(str(run)))
    assert str(caught.value) == (
        f"The adapter of start_from '{run}' was initialized with loftq: got a base in the "
        "precision of its checkpoint, expected one in 4 bits (nf4, scales quantised), whose "
        "quantisation error it makes up for. Set the same quantization as in its recipe."
    )
    same = StartingPoint.of(start(str(run), quantization={"bits": 4}))
    assert same.about == ()


def test_another_template_and_slices_that_files_do_not_have_are_noted(done, start, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(done[0].run_dir, run)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        text.replace("enable_lora: {}", "enable_lora: {c: [true, no]}")
    )
    (run / "adapter/chat_template.jinja").write_text("one")
    (tmp_path / "same.jinja").write_text("one")
    (tmp_path / "other.jinja").write_text("two")
    notes = {
        name: StartingPoint.of(
            start(str(run), training={"chat_template_path": str(tmp_path / name)})
        ).about
        for name in ("same.jinja", "other.jinja")
    }
    slices = "Files do not record lora.enable_lora: every slice of its fused matrices is trained."
    template = "training.chat_template_path replaces the chat template of the adapter."
    assert notes == {"same.jinja": (slices,), "other.jinja": (template, slices)}
