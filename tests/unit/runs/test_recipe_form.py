"""A recipe as a text and as fields."""

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import TASKS, recipe_text
from lorakit.recipes.yaml_edits import UNSET
from lorakit.runs.recipe_form import (
    FIELDS,
    check_text,
    field_text,
    help_of,
    parse_field,
    with_field,
)

BY_KEY = {field.key: field for field in FIELDS}
TEXT = recipe_text("SEQ_CLS", "recipe.yaml", "runs/recipe")


def test_a_recipe_without_problems_is_the_recipe_that_training_reads(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    checked = check_text(TEXT, str(path))
    assert checked.problems == () and checked.recipe == Recipe.load(path)
    assert checked.value("lora.r") == 8 and checked.value("lora.bias") is UNSET


def test_each_problem_has_its_key_its_line_and_the_sentence_of_the_command_line(tmp_path):
    text = "model: m\ntask: SEQ_CLS\noutput: o\ndata:\n  trian: a\nlora:\n  r: 0\n"
    text += "training:\n  seed: 1\n  learning_rate: -1\n"
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as printed:
        Recipe.load(path)
    checked = check_text(text, str(path))
    found = {problem.key: problem.line for problem in checked.problems}
    assert found == {"data.train": 4, "data.trian": 5, "lora.r": 7, "training.learning_rate": 10}
    assert all(problem.sentence in str(printed.value) for problem in checked.problems)
    assert checked.is_yaml and checked.recipe is None
    assert [p.key for p in checked.problems_at("data")] == ["data.train", "data.trian"]
    assert checked.problems_at("lora.r")[0].sentence.startswith("lora.r: got 0; ")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("model: [\n", 2, "Cannot read my.yaml, line 2"),
        ("- a\n", 1, "got a list"),
        ("", 1, "got an empty file"),
        ("model: m\nmodel: n\n", 2, "the key 'model' is repeated"),
    ],
)
def test_what_is_no_recipe_at_all_is_one_problem(text, line, words):
    checked = check_text(text, "my.yaml")
    assert not checked.is_yaml and len(checked.problems) == 1
    assert checked.problems[0].line == line and words in checked.problems[0].sentence


def test_an_unknown_task_and_settings_that_exclude_each_other_are_found():
    checked = check_text(TEXT.replace("task: SEQ_CLS", "task: SEQ"), "r")
    assert checked.problems[0].key == "task"
    text = with_field(TEXT, BY_KEY["quantization.bits"], 8)
    text = text.replace("{bits: 8}", "{bits: 8, quant_type: fp4}")
    (problem,) = check_text(text, "r").problems
    assert (
        problem.key == "quantization"
        and problem.line == text[: text.index("bits: 8")].count("\n") + 1
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_field_can_be_set_and_unset_in_every_template_and_has_help(task):
    text = recipe_text(task, "recipe.yaml", "runs/recipe")
    for field in FIELDS:
        value = list(field.choices.values())[-1] if field.choices else 3
        value = 0.5 if field.key == "lora.lora_dropout" else value
        value = ["q_proj", "v_proj"] if field.kind == "words" else value
        edited = with_field(text, field, value)
        assert check_text(edited, "r").value(field.key) == value
        assert check_text(edited, "r").problems == ()
        unset = with_field(edited, field, UNSET)
        assert check_text(unset, "r").value(field.key) is UNSET
        assert check_text(unset, "r").problems == ()
        assert edited.count("\n") == text.count("\n")
        assert help_of(field.key, task), field.key
        assert field.choices or parse_field(field, field_text(field, value)) == value


def test_what_is_typed_wrong_is_kept_for_the_check_to_report():
    text = with_field(TEXT, BY_KEY["lora.r"], parse_field(BY_KEY["lora.r"], "eight"))
    (problem,) = check_text(text, "r").problems
    assert problem.key == "lora.r" and "'eight'" in problem.sentence
    text = with_field(TEXT, BY_KEY["training.learning_rate"], "1e-")
    assert [p.key for p in check_text(text, "r").problems] == ["training.learning_rate"]
