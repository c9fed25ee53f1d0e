"""Edits of a recipe's text that keep its comments."""

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes import yaml_text
from lorakit.recipes.template import TASKS, recipe_text
from lorakit.recipes.yaml_edits import UNSET, key_lines, with_values

TEXT = """\
# An experiment.
model: m  # the base
output: runs/a
# quantization: {bits: 4}  # of the base

lora:  # the adapter
  r: 8          # the rank
  # bias: none  # the biases
  target_modules:
    - q_proj
    - v_proj
training:
"""


def parsed(text):
    return yaml_text.parse(text, "the test")


def test_a_value_is_replaced_and_its_comment_stays_in_its_column():
    edited = with_values(TEXT, {"lora.r": 16, "model": "./another: base"})
    assert "  r: 16         # the rank\n" in edited
    assert "model: './another: base'  # the base\n" in edited
    assert edited.startswith("# An experiment.\n")


def test_a_commented_key_is_set_where_it_stands_and_commented_out_again():
    edited = with_values(TEXT, {"lora.bias": "all", "quantization.bits": 8})
    assert "  bias: all     # the biases\n" in edited
    assert "quantization: {bits: 8}    # of the base\n" in edited
    assert parsed(edited)["lora"]["bias"] == "all"
    back = with_values(edited, {"lora.bias": UNSET, "quantization": UNSET})
    assert parsed(back) == parsed(TEXT)
    assert "  # bias: all   # the biases\n" in back


def test_a_new_key_goes_to_the_end_of_its_section():
    changes = {"lora.use_rslora": True, "training.seed": 7, "dtype": "float32", "data.train": "a"}
    edited = with_values(TEXT, changes)
    assert "    - v_proj\n  use_rslora: true\n" in edited
    assert "training:\n  seed: 7\n" in edited
    assert "output: runs/a\ndtype: float32\n" in edited
    assert parsed(edited)["data"] == {"train": "a"}


def test_lists_and_sections_are_replaced_and_removed_as_a_whole():
    edited = with_values(TEXT, {"lora.target_modules": ["k_proj"]})
    assert "  target_modules: [k_proj]\n" in edited and "v_proj" not in edited
    assert parsed(with_values(TEXT, {"lora.target_modules": UNSET}))["lora"] == {"r": 8}
    assert "lora" not in parsed(with_values(TEXT, {"lora": UNSET}))


def test_keys_in_brackets_are_edited():
    text = "data: {train: a.csv, format: auto}  # the data\nlora: {r: 8}\n"
    edited = with_values(text, {"data.train": "b.csv", "data.text": "t", "lora.r": UNSET})
    assert parsed(edited) == {
        "data": {"train": "b.csv", "format": "auto", "text": "t"},
        "lora": {},
    }
    assert "# the data" in edited


@pytest.mark.parametrize("task", TASKS)
def test_the_templates_take_any_change_without_losing_a_comment(task):
    text = recipe_text(task, "recipe.yaml", "runs/recipe")
    changes = {
        "model": "base",
        "data.train": "other.csv",
        "lora.r": 32,
        "lora.init_lora_weights": "pissa",
        "training.weight_decay": 0.1,
        "training.max_steps": 10,
        "quantization.bits": 4,
    }
    edited = with_values(text, changes)
    expected = parsed(text)
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        (expected.setdefault(section, {}) if section else expected)[last] = value
    assert parsed(edited) == expected
    assert edited.count("#") == text.count("#") - 4  # four keys are no longer commented out
    assert len(edited.splitlines()) == len(text.splitlines())


def test_a_value_that_is_set_already_leaves_the_text_alone():
    assert with_values(TEXT, {"lora.r": 8, "dtype": UNSET, "search.trials": UNSET}) == TEXT


def test_a_text_with_anchors_is_written_again_where_no_edit_is_right():
    text = "model: &name m\noutput: *name\n"
    assert parsed(with_values(text, {"model": "n"})) == {"model": "n", "output": "m"}
    assert parsed(with_values("", {"lora.r": 4})) == {"lora": {"r": 4}}


def test_what_is_not_yaml_is_refused_with_its_line():
    with pytest.raises(ConfigError, match="line 2") as refused:
        with_values("model: m\n  r: [\n", {"model": "n"})
    assert refused.value.problems[0].line == 2


def test_the_lines_of_keys_count_from_one():
    lines = key_lines(TEXT)
    assert (lines["model"], lines["lora"], lines["lora.r"], lines["training"]) == (2, 6, 7, 12)
