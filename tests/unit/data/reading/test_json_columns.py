"""Columns of JSON values: typed where they can be, else as written."""

import pytest

from lorakit.data.reading.json_columns import WrittenJson, columns_from_objects
from lorakit.errors import DataError


def read(*objects, lines=None):
    numbered = zip(lines or [None] * len(objects), objects, strict=True)
    return columns_from_objects(numbered, "data.train: got 'x.jsonl'", None)


@pytest.mark.parametrize(
    "column",
    [
        ["a", None, "b"],
        [1, None, -3],
        [True, False],
        [0.5, 1.5],
        [["a", "b"], [], None],
        [[1, 2], []],
        [1, "a", True],
        [1, 1.5],
        [10**30, 1],
        [["a", 1], ["b"]],
        [{"a": 1}, {"b": [None]}],
        [None, None],
        [None, [None, None]],
        [[], None],
        ["1", 1],
    ],
)
def test_values_stay_as_written_wherever_they_stand(column):
    first = [{"id": i} for i in range(20_001)]

    made = read(*first, *({"value": value} for value in column))

    assert [repr(v) for v in made.dataset["value"][20_001:]] == [repr(v) for v in column]
    assert made.dataset["id"][:3] == [0, 1, 2]


def test_a_type_that_changes_in_the_middle_of_a_file_changes_no_value():
    column = [0] * 20_001 + ["spam"]

    made = read(*({"label": value} for value in column))

    assert made.dataset["label"][:] == column


def test_lines_are_known_or_not_for_the_whole_file():
    assert read({"a": 1}, {"b": 2}, lines=[1, 4]).lines.tolist() == [1, 4]
    assert read({"a": 1}, {"b": 2}, lines=[1, None]).lines is None


def test_plain_columns_have_a_plain_type_and_others_are_json():
    made = read({"n": 1, "tags": ["a"], "any": 1}, {"n": None, "tags": [], "any": "1"}).dataset
    kinds = {name: type(kind).__name__ for name, kind in made.features.items()}
    assert kinds == {"n": "Value", "tags": "List", "any": "WrittenJson"}
    assert isinstance(made.features["any"], WrittenJson)
    assert made.to_list()[1] == {"n": None, "tags": [], "any": "1"}


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"]])
def test_half_a_surrogate_pair_names_its_column(value):
    with pytest.raises(DataError, match=r"whose column 'a' holds half a surrogate pair"):
        read({"a": value})
