import json

import pytest

from lorakit.runs import compare
from lorakit.runs.compare import MISSING, Difference


@pytest.fixture
def run(tmp_path):
    def make(name, recipe, *rows):
        path = tmp_path / name
        path.mkdir()
        if recipe is not None:
            (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / "metrics.jsonl").write_text(lines, encoding="utf-8")
        return compare.read_run(path, name)

    return make


def evaluated(**metrics):
    return {"event": "evaluation", "step": 3, "epoch": 1.0, **metrics}


def test_only_fields_that_differ_are_shown(run):
    a = run("a", "model: m\nlora: {r: 4, lora_dropout: 0.1}\noutput: a\ndata: {label: '<b>'}\n")
    b = run("b", "model: m\nlora: {r: 8, lora_dropout: 0.1}\noutput: b\ndata: {label: null}\n")
    c = run("c", "model: m\nlora: {r: 8, lora_dropout: 0.1}\n")
    assert compare.differences([a, b, c]) == [
        Difference("lora.r", ("4", "8", "8")),
        Difference("data.label", ("<b>", "null", MISSING)),
    ]
    assert compare.differences([a]) == []
    assert compare.differences([]) == []


def test_a_field_against_a_metric(run):
    a = run("a", "lora: {r: 4}\n", evaluated(eval_loss=0.5))
    b = run("b", "lora: {r: 8}\n", evaluated(eval_loss=0.25))
    c = run("c", "lora: {r: 8}\n")
    assert compare.field_points([a, b, c], "lora.r", "eval_loss") == [
        ("a", 4, 0.5),
        ("b", 8, 0.25),
    ]
    assert compare.field_names([a, b]) == ["lora.r"]
    assert compare.metric_names([a, b]) == ["eval_loss", "wall_s"]


def test_texts_and_numbers_of_a_field_are_texts_together(run):
    a = run("a", "lora: {target_modules: all-linear}\n", evaluated(eval_loss=0.5))
    b = run("b", "lora: {target_modules: [q, v]}\n", evaluated(eval_loss=0.25))
    assert compare.field_points([a, b], "lora.target_modules", "eval_loss") == [
        ("a", "all-linear", 0.5),
        ("b", "q, v", 0.25),
    ]


def test_numbers_that_do_not_differ_can_be_drawn_too(run):
    a, b = (run(name, "lora: {r: 4, use_dora: true}\nmodel: m\n") for name in "ab")
    assert compare.field_names([a, b]) == ["lora.r"]


def test_a_damaged_run_says_which_file_is_wrong(run, tmp_path):
    a = run("a", "lora: [\n", evaluated(eval_loss=0.5))
    assert str(tmp_path / "a" / "recipe.yaml") in a.problem
    assert a.metrics["eval_loss"] == 0.5
    b = run("b", None)
    assert str(tmp_path / "b" / "recipe.yaml") in b.problem
    c = run("c", "model: m\n")
    (tmp_path / "c" / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl: line 1" in compare.read_run(tmp_path / "c", "c").problem
    assert c.problem is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (3e-05, "3e-05"), ({}, "{}"), ({"q": [1, 2]}, "q: 1, 2"), ("😀", "😀")],
)
def test_values_as_text(value, text):
    assert compare.value_text(value) == text
