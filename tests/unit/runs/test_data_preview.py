"""Examples as the model will see them, without loading weights."""

import json
from itertools import pairwise

import pytest

from lorakit.errors import DataError
from lorakit.recipes.recipe import Recipe
from lorakit.runs import data_preview
from lorakit.runs.data_preview import histogram, preview_data
from lorakit.training.preview import dry_run


@pytest.fixture
def base():
    from lorakit.quickstart.model_files import base_model_path

    return str(base_model_path())


def written(base, task, data, tmp_path, **training):
    values = {"model": base, "task": task, "data": data, "output": str(tmp_path / "run")}
    return Recipe.check({**values, "training": {"use_cpu": True, **training}}, "the test")


def test_the_preview_equals_a_dry_run(base, tmp_path):
    path = tmp_path / "tickets.csv"
    lines = [f"ticket number {n} about {'money ' * (n % 7)},{'ab'[n % 2]}" for n in range(60)]
    path.write_text("\n".join(["text,label", *lines]))
    data = {"train": str(path), "max_length": 12}
    recipe = written(base, "SEQ_CLS", data, tmp_path)
    preview, dry = preview_data(recipe), dry_run(recipe, preview_examples=10)
    assert [(list(e.tokens), list(e.counted), e.note) for e in preview.examples] == [
        (e.tokens, e.counted, e.note) for e in dry.preview_examples
    ]
    assert (preview.train_examples, preview.validation_examples) == (54, 6)
    assert preview.labels == dry.labels == ("a", "b")
    assert set(preview.notes) <= set(dry.notes)
    assert preview.columns == ("text", "label")
    assert sum(count for _, _, count in preview.lengths) == 54
    assert 0 < preview.cut_share < 1 and preview.longest == preview.max_length == 12
    assert any(f"{round(54 * preview.cut_share)} of 54" in note for note in preview.notes)
    assert not (tmp_path / "run").exists()


def test_two_answers_are_shown_with_their_prompt(base, tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [
        {"prompt": f"Say {n}.", "chosen": " Yes, gladly.", "rejected": " No."} for n in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    values = {"model": base, "task": "CAUSAL_LM", "objective": {"type": "dpo"}}
    values |= {"data": {"train": str(path)}, "output": str(tmp_path / "run")}
    preview = preview_data(Recipe.check({**values, "training": {"use_cpu": True}}, "the test"))
    assert preview.columns == ("prompt", "chosen", "rejected")
    for example in preview.examples:
        assert "Say" in "".join(example.tokens[: example.prompt])
        assert "gladly" in "".join(example.tokens[example.prompt :])
        assert "No." in "".join(example.rejected.tokens)
        assert any(example.rejected.counted) and not any(example.counted[: example.prompt])


def test_only_the_completion_counts_and_packed_batches_have_no_padding(base, tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [
        {"prompt": f"What is {n}?", "completion": " A number." * (1 + n % 3)} for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    recipe = written(base, "CAUSAL_LM", {"train": str(path)}, tmp_path)
    preview = preview_data(recipe, examples=3)
    assert len(preview.examples) == 3 and preview.labels == ()
    for example in preview.examples:
        first = example.counted.index(True)
        assert all(example.counted[first:]) and "?" in "".join(example.tokens[:first])
    assert preview.cut_share == 0 and preview.padding_share > 0
    packed = written(base, "CAUSAL_LM", {"train": str(path)}, tmp_path, packing=True)
    assert preview_data(packed).padding_share == 0


def test_of_much_data_evenly_spaced_examples_are_measured(base, tmp_path, monkeypatch):
    monkeypatch.setattr(data_preview, "_MOST_MEASURED", 20)
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "a text,x\nanother text,y\n" * 50)
    data = {"train": str(path), "validation_fraction": 0}
    preview = preview_data(written(base, "SEQ_CLS", data, tmp_path), examples=10)
    assert preview.train_examples == 100 and 20 <= preview.measured_examples <= 30
    assert len(preview.examples) == 10 and preview.validation_examples == 0


def test_errors_are_those_of_training(base, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\nx,y\n,y\nz,w\nx,w\n")
    recipe = written(base, "SEQ_CLS", {"train": str(path)}, tmp_path)
    with pytest.raises(DataError) as trained:
        dry_run(recipe)
    with pytest.raises(DataError) as previewed:
        preview_data(recipe)
    assert str(previewed.value) == str(trained.value)


def test_a_histogram_counts_every_length_once():
    lengths = [*range(1, 200), 500]
    bins = histogram(lengths)
    assert len(bins) <= 24 and sum(count for _, _, count in bins) == len(lengths)
    assert bins[0][0] == 1 and bins[-1][1] == 500
    assert all(one[1] + 1 == other[0] for one, other in pairwise(bins))
