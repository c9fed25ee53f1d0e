import subprocess
import sys

import pytest
import yaml

from lorakit.config import TaskType
from lorakit.errors import ConfigError, MissingFileError
from lorakit.recipes.recipe import DataConfig, Recipe, changed_keys, load_written_recipe

MINIMAL = """\
model: distilbert-base-uncased
task: SEQ_CLS
data: {train: rows.csv, text: sentence}
output: runs/a
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def refusal(path, *overrides, kind=ConfigError):
    with pytest.raises(kind) as caught:
        Recipe.load(path, overrides)
    return str(caught.value).replace(str(path), path.name)


def test_a_recipe_is_read_with_its_defaults(write):
    recipe = Recipe.load(write(MINIMAL))
    assert recipe.task is TaskType.SEQ_CLS
    assert recipe.data.text == "sentence"
    assert recipe.data.validation_fraction == 0.1
    assert recipe.lora.r == 8
    assert recipe.training == {}


def test_overrides_are_yaml_and_win(write):
    recipe = Recipe.load(
        write(MINIMAL + "lora: {r: 4}\ntraining:\n"),
        [
            "lora.r=16",
            "training.learning_rate=1e-3",
            "training.eval_strategy=no",
            "lora.target_modules=[q_lin, v_lin]",
            "data.validation=",
            "training.run_name=a=b",
        ],
    )
    assert recipe.lora.r == 16
    assert recipe.training == {"learning_rate": 1e-3, "eval_strategy": "no", "run_name": "a=b"}
    assert recipe.lora.target_modules == ("q_lin", "v_lin")
    assert recipe.data.validation is None


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("2E+2", 200.0), (".5", 0.5), ("3", 3.0)]
)
def test_numbers_are_numbers_in_the_file_too(write, text, value):
    recipe = Recipe.load(write(f"{MINIMAL}training:\n  learning_rate: {text}\n"))
    assert recipe.training["learning_rate"] == value
    assert isinstance(recipe.training["learning_rate"], float)


def test_yes_and_no_are_words_except_where_a_claim_is_asked_for(write):
    text = MINIMAL.replace("sentence", "no") + "training: {save_strategy: no, bf16: yes}\n"
    recipe = Recipe.load(write(text))
    assert recipe.data.text == "no"
    assert recipe.training == {"save_strategy": "no", "bf16": True}


def test_a_path_may_begin_in_the_home_directory(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    recipe = Recipe.load(write(MINIMAL), ["output=~/runs/a", "data.validation=~/v.csv"])
    assert recipe.output == str(tmp_path / "runs" / "a")
    assert recipe.data.validation == str(tmp_path / "v.csv")
    assert recipe.model == "distilbert-base-uncased"


def test_a_recipe_survives_writing_and_reading(write, tmp_path):
    text = MINIMAL.replace("sentence", "'1e-3'").replace("rows.csv", "'no'")
    recipe = Recipe.load(
        write(text + "lora: {rank_pattern: {q_lin: 2}, layers_to_transform: 1}\n"),
        ["training.learning_rate=1e-05", "training.eval_strategy=steps", "revision='0123'"],
    )
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert Recipe.load(again) == recipe
    assert yaml.safe_load(recipe.to_yaml())["data"]["train"] == "no"  # also in YAML 1.1


def test_all_problems_are_reported_together(write):
    text = MINIMAL.replace("output: runs/a\n", "") + (
        "lorra: {r: 4}\n"
        "lora: {r: 0, lora_alhpa: 2}\n"
        "training: {learning_rate: abc, num_train_epoch: 3, eval_strategy: epcoh}\n"
    )
    assert refusal(write(text)).splitlines() == [
        "recipe.yaml has 7 problems:",
        "  lora.r: got 0; input should be greater than or equal to 1.",
        "  unknown key 'lora.lora_alhpa'. Did you mean 'lora_alpha'?",
        "  training.learning_rate: got 'abc'; input should be a valid number, "
        "unable to parse string as a number.",
        "  training.eval_strategy: got 'epcoh'; input should be 'no', 'steps' or 'epoch'.",
        "  unknown key 'training.num_train_epoch'. Did you mean 'num_train_epochs'?",
        "  missing key 'output'. Add it.",
        "  unknown key 'lorra'. Did you mean 'lora'?",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lora: {task_type: TOKEN_CLS}", "lora.task_type is TOKEN_CLS but task is SEQ_CLS"),
        ("lora: {float_rank: 8}", "unknown key 'lora.float_rank'."),
        ("quantisation: null", "unknown key 'quantisation'. Did you mean 'quantization'?"),
        ("quantization: {bits: 3}", "quantization.bits: got 3; input should be 4 or 8"),
        ("quantization: {bit: 4}", "unknown key 'quantization.bit'. Did you mean 'bits'?"),
        ("quantization: 4", "quantization: got 4; input should be a section of keys and values."),
    ],
)
def test_wrong_values_are_reported(write, line, message):
    assert message in refusal(write(MINIMAL + line + "\n"))


@pytest.mark.parametrize("word", ["stream", "string", "int8", "float_rank", "boolean"])
def test_an_unknown_key_in_a_section_is_named_in_full(write, word):
    text = MINIMAL.replace("text: sentence", f"{word}: 1")

    assert f"unknown key 'data.{word}'." in refusal(write(text))


@pytest.mark.parametrize(
    ("written", "kept"), [(";", ";"), ("\\t", "\t"), ("tab", "\t"), (None, None)]
)
def test_a_delimiter_is_one_character(write, written, kept):
    assert DataConfig(train="a.csv", delimiter=written).delimiter == kept
    text = MINIMAL.replace("text: sentence", "delimiter: ab")
    assert "data.delimiter: got 'ab'; expected one character" in refusal(write(text))


def test_an_unknown_task_is_reported_with_the_rest(write):
    message = refusal(write(MINIMAL.replace("SEQ_CLS", "SEQCLS") + "lorra: 1\n"))
    assert "task: got 'SEQCLS'; input should be 'CAUSAL_LM', 'SEQ_CLS', 'TOKEN_CLS' or" in message
    assert "Did you mean 'lora'?" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read recipe.yaml: got an empty file, expected `key: value` lines."),
        ("- a\n", "Cannot read recipe.yaml: got a list, expected `key: value` lines."),
        ("model: a\n  task: b\n", "Cannot read recipe.yaml, line 2, column 7: mapping values are"),
        ("a: 1\nb: 2\na: 3\n", "Cannot read recipe.yaml, line 3, column 1: the key 'a' is repe"),
        ("a: &x [*x2]\n", "Cannot read recipe.yaml, line 1, column 8: found undefined alias"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_reported(write, text, message):
    assert message in refusal(write(text))


def test_a_file_that_is_not_utf8_is_reported(write):
    path = write("")
    path.write_bytes(b"model: caf\xe9\n")
    assert refusal(path) == (
        "Cannot read recipe.yaml: byte 10 is not UTF-8. Save the file as UTF-8."
    )


def test_a_missing_file_names_its_neighbour(write):
    path = write(MINIMAL)
    wrong = path.with_name("recipes.yaml")
    assert refusal(wrong, kind=MissingFileError) == (
        "No recipe recipes.yaml: the file does not exist. Did you mean 'recipe.yaml'?"
    )
    assert "it is a directory, expected a YAML file" in refusal(path.parent)


def test_an_error_from_an_override_names_the_override(write):
    message = refusal(write(MINIMAL), "lora.r=big")
    assert message.startswith("In recipe.yaml with lora.r=big: lora.r: got 'big'; ")


def test_a_dtype_that_does_not_exist_is_reported_with_those_that_do(write):
    message = refusal(write(MINIMAL + "dtype: fastest"))
    assert "dtype: got 'fastest'" in message
    assert "'saved', 'auto', 'float32', 'bfloat16' or 'float16'" in message


def test_auto_in_a_written_recipe_is_the_saved_dtype(write):
    path = write(MINIMAL + "dtype: auto")
    assert Recipe.load(path).dtype == "auto"
    assert load_written_recipe(path).dtype == "saved"
    assert load_written_recipe(write(MINIMAL + "dtype: float32")).dtype == "float32"


def test_the_precision_of_another_recipe_is_its_dtype_and_autocast(write):
    recipe = Recipe.load(write(MINIMAL + "dtype: auto\ntraining: {seed: 3}"))
    other = Recipe.load(write(MINIMAL + "dtype: float32\ntraining: {bf16: true, seed: 4}"))
    same = recipe.with_precision_of(other)
    assert (same.dtype, same.training) == ("float32", {"bf16": True, "seed": 3})


def test_changed_keys_name_what_differs(write):
    path = write(MINIMAL)
    old = Recipe.load(path, ["training.seed=1"])
    new = Recipe.load(path, ["training.max_steps=5", "lora.r=2", "data.max_length=9"])
    assert changed_keys(old, new) == [
        "data.max_length",
        "lora.r",
        "training.max_steps",
        "training.seed",
    ]
    assert changed_keys(old, old) == []


def test_the_lora_section_of_an_adapter_keeps_what_is_given_alone(write, tmp_path, monkeypatch):
    path = write(MINIMAL + "start_from: runs/first\nlora: {r: 8}\n")
    recipe = Recipe.load(path, ["lora.lora_dropout=0.5"])
    assert recipe.model_dump()["lora"] == {"r": 8, "lora_dropout": 0.5}
    again = write(recipe.to_yaml())
    assert Recipe.load(again).lora.model_fields_set == {"r", "lora_dropout"}
    more = recipe.with_changes({"lora.r": 4}, "the test")
    assert more.lora.model_fields_set == {"r", "lora_dropout"} and more.lora.r == 4
    monkeypatch.chdir(tmp_path)
    assert recipe.with_absolute_paths().start_from == "runs/first"  # a hub id
    (tmp_path / "runs").mkdir()
    assert recipe.with_absolute_paths().start_from == f"{tmp_path}/runs/first"


def test_reading_the_class_imports_neither_torch_nor_transformers():
    code = (
        "import sys, lorakit.recipes.recipe as r;"
        "r.Recipe(model='m', task='SEQ_CLS', data={'train': 'a'}, output='o');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
