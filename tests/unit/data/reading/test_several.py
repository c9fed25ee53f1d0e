import pytest
from datasets import Dataset

from fixtures.data import write_jsonl
from lorakit.data import describe_examples, load_splits
from lorakit.data.reading.several import expand_glob, join_examples
from lorakit.data.reading.table import FileExamples
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.recipes.data_section import DataConfig


def part(**columns):
    return FileExamples(Dataset.from_dict(columns))


def test_columns_may_come_in_any_order():
    joined = join_examples([part(a=["x"], b=[1]), part(b=[2], a=["y"])], ["one", "two"], "Files")

    assert joined.dataset["a"][:] == ["x", "y"] and joined.dataset["b"][:] == [1, 2]
    assert joined.files == ("one", "two") and joined.file_of.tolist() == [0, 1]


def test_other_columns_are_refused_with_both_sets():
    with pytest.raises(DataError) as caught:
        join_examples([part(a=["x"]), part(b=["y"], c=["z"])], ["one", "two"], "Sources")
    assert str(caught.value).startswith(
        "Sources have different columns: got b, c in 'two', expected a as in 'one'."
    )


def test_other_types_are_refused_unless_they_are_json():
    with pytest.raises(DataError, match=r"got int64 in the column 'a' of 'two', expected string"):
        join_examples([part(a=["x"]), part(a=[1])], ["one", "two"], "Files")
    joined = join_examples([part(a=[["x"]]), part(a=[{"k": 1}])], ["one", "two"], "Files")
    assert joined.dataset["a"][:] == [["x"], {"k": 1}]


def test_a_pattern_needs_a_file(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    assert [path[-7:] for path in expand_glob(str(tmp_path / "*.jsonl"), "data.train")] == [
        "a.jsonl",
        "b.jsonl",
    ]
    with pytest.raises(MissingFileError, match="which matches no file"):
        expand_glob(str(tmp_path / "*.csv"), "data.train")


def test_messages_name_the_file_and_line_of_an_example(tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(3)])
    data = DataConfig(train=str(tmp_path / "*.jsonl"), validation_fraction=0)

    splits = load_splits(data, 0)

    assert splits.train["text"][:] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    place = splits.training_place(data).select([5, 0])
    assert describe_examples([0, 1], place) == (
        f"examples 3 (line 3) of '{tmp_path}/b.jsonl', 1 (line 1) of '{tmp_path}/a.jsonl'"
    )


def test_sources_have_their_own_columns_and_weights(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": f"a{n}", "label": "x"} for n in range(8)])
    rows = [{"review": f"b{n}", "stars": "y", "id": "i"} for n in range(8)]
    two = write_jsonl(tmp_path / "two.jsonl", rows)
    columns = {"text": "review", "label": "stars"}
    sources = [{"path": one, "weight": 2}, {"path": [two], "columns": columns}]

    splits = load_splits(DataConfig(train=sources, validation_fraction=0.25), 0, "label")

    assert splits.train.column_names == ["text", "label"]
    assert len(splits.train) == 12 and len(splits.validation) == 4
    assert splits.mixture.weights == (2.0, 1.0)
    of_first = [text.startswith("a") for text in splits.train["text"]]
    assert [source == 0 for source in splits.mixture.source_of] == of_first
    assert any(note.startswith("An epoch draws 18 examples: 12 of '") for note in splits.notes)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"weight": 0}, "greater than 0"),
        ({"weight": -1}, "greater than 0"),
        ({"columns": {"text": "absent"}}, r"data.train\[1\].columns.text: got 'absent'"),
        ({"split": "test", "path": "{tmp}/none.jsonl"}, "none.jsonl"),
        ({"path": []}, "at least one file"),
        ({"path": "{tmp}/other.jsonl"}, "Sources have different columns: got words in"),
    ],
)
def test_bad_sources_are_refused(tmp_path, source, said):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a"}] * 4)
    write_jsonl(tmp_path / "other.jsonl", [{"words": "a"}] * 4)
    source = {"path": one, **source}
    if isinstance(source["path"], str):
        source["path"] = source["path"].replace("{tmp}", str(tmp_path))
    with pytest.raises((ConfigError, DataError, MissingFileError), match=said):
        load_splits(DataConfig(train=[{"path": one}, source]), 0)


def test_a_subset_belongs_to_its_source(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a"}] * 4)
    with pytest.raises(ConfigError, match="Sources have their own subsets"):
        load_splits(DataConfig(train=[{"path": one}], subset="mrpc"), 0)
    with pytest.raises(ConfigError, match="at least one source"):
        DataConfig(train=[])
