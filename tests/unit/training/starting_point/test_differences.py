"""What differs between the training of an adapter and a recipe that starts from it."""

import shutil

import pytest

from lorakit.errors import ConfigError
from lorakit.training.starting_point import StartingPoint


def test_a_loftq_parent_needs_its_quantization(done, start, tmp_path):
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
        "precision of its checkpoint, expected one in 4 bits (nf4, scales quantized), whose "
        "quantization error it makes up for. Set the same quantization as in its recipe."
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
