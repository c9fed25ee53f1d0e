"""Examples are chosen so that training keeps every label."""

from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fixtures.data import write_examples
from lorakit.data import load_splits
from lorakit.recipes.recipe import DataConfig


def test_taken_validation_has_each_label_in_its_share_and_leaves_rare_ones_to_training(tmp_path):
    rows = [{"text": str(i), "label": "many"} for i in range(60)]
    rows += [{"text": str(i), "label": "some"} for i in range(20)]
    rows += [{"text": "x", "label": "once"}]
    data = DataConfig(train=write_examples(tmp_path / "rows.jsonl", rows), validation_fraction=0.25)

    splits = load_splits(data, 3, "label")

    assert Counter(splits.validation["label"]) == {"many": 15, "some": 5}
    assert "once" in splits.train["label"]


def test_class_label_column_is_split_by_label(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = [{"text": str(i), "label": int(i < 10)} for i in range(40)]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")

    splits = load_splits(
        DataConfig(train=str(tmp_path / "saved"), validation_fraction=0.2), 0, "label"
    )

    assert Counter(splits.validation["label"]) == {0: 6, 1: 2}


def test_only_the_labels_of_the_task_are_looked_at(tmp_path):
    data = DataConfig(train=write_examples(tmp_path / "rows.jsonl"), validation_fraction=0.2)

    splits = load_splits(data, 1)

    assert splits.notes == ("4 of 20 training examples were taken for validation (seed 1).",)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_no_label_and_no_tag_is_lost_to_validation(tmp_path, seed, fraction):
    rows = [{"tags": ["O", "AB"[i % 2]], "label": "xy"[i % 2]} for i in range(20)]
    rows += [{"tags": ["O", "R"], "label": "r"}, {"tags": ["R", "S"], "label": "s"}]
    data = DataConfig(
        train=write_examples(tmp_path / "rows.jsonl", rows), validation_fraction=fraction
    )

    for column in ("tags", "label"):
        splits = load_splits(data, seed, column)
        kept = {str(t) for tags in splits.train[column] for t in tags}
        assert {str(t) for tags in splits.validation[column] for t in tags} <= kept
        assert len(splits.train) + len(splits.validation) == len(rows)


@pytest.mark.parametrize("most", [4, 5, 20, 199])
def test_a_limit_keeps_an_example_of_every_label(tmp_path, most):
    rows = [{"text": str(i), "label": "rare" if i in (3, 77) else "abc"[i % 3]} for i in range(200)]
    data = DataConfig(
        train=write_examples(tmp_path / "rows.jsonl", rows),
        validation_fraction=0,
        max_train_rows=most,
    )

    for seed in range(5):
        kept = load_splits(data, seed, "label").train
        assert set(kept["label"]) == {"a", "b", "c", "rare"}
        assert len(kept) == most == len(set(kept["text"]))


def test_splitting_takes_linear_time(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t{i},l{i // 2}\n" for i in range(20_000)))

    splits = load_splits(DataConfig(train=str(path), validation_fraction=0.5), 0, "label")

    assert len(splits.validation) == 10_000
    assert len(set(splits.train["label"])) == 10_000
