import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lorakit.data import Place
from lorakit.data.labels import label_names, label_notes, require_distinct, sort_label_names
from lorakit.errors import DataError


def labels(values):
    return Dataset.from_dict({"label": values})


@pytest.mark.parametrize(
    "names",
    [
        ("01", "1"),
        ("007", "7"),
        ("1000", "1e3"),
        ("True", "true"),
        ("NA", "nan", "null"),
        ("-2", "0", "9", "10", "99999999999999999999"),
        ("3.5", "4.0"),
    ],
)
def test_texts_are_labels_as_written(names):
    rows = labels([*names[::-1], *names])

    assert label_names(rows, "label", "x") == [*names[::-1], *names]
    assert sort_label_names(rows, "label", "x") == names


@pytest.mark.parametrize("one", ["spam", "é", "1"])
@pytest.mark.parametrize("other", ["{} ", " {}", "{}\u00a0", "{}\n"])
def test_labels_that_look_alike_are_refused(one, other):
    with pytest.raises(DataError) as caught:
        label_names(labels(["ham", one, other.format(one), "ham"]), "label", Place("the file"))

    assert str(caught.value).startswith(
        f"Two labels are alike in the file, column 'label': got {one!r} and {other.format(one)!r} "
        "in examples 2, 3, expected one spelling of each class."
    )


@pytest.mark.parametrize("number", [1, "1", "true"])
def test_true_and_one_are_alike(number):
    with pytest.raises(DataError, match=rf"^Two labels are alike .* got True and {number!r} in"):
        require_distinct([[True], [False], [number]], "label", "x")
    require_distinct([[True], [False], ["yes"], [2]], "label", "x")


def test_accents_stored_in_two_ways_are_refused():
    with pytest.raises(DataError, match=r"^Two labels are alike"):
        label_names(labels(["\u00e9", "e\u0301"]), "label", "x")


def test_spaces_that_make_no_two_labels_alike_are_said():
    assert label_notes(["a", " b", "c "], "label") == [
        "Labels with spaces around them are taken as written ('label'): ' b', 'c '."
    ]
    assert label_notes(["a", "b c"], "label") == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([0.5, 1.0], "got 0.5 in example 1"),
        (
            ["0.31", "0.7", "0.2"],
            "Set data.problem_type=regression if these are numbers to predict",
        ),
        ([f"{i / 8}" for i in range(200)], "Set data.problem_type=regression"),
        ([["a"], ["a", "b"]], "Set data.problem_type=multi_label_classification if a text may"),
        ([{"a": 1}, {"a": 2}], "got {'a': 1} in example 1, expected text, integers"),
    ],
)
def test_what_is_no_class_is_named(values, problem):
    with pytest.raises(DataError) as caught:
        label_names(labels(values), "label", "x")

    assert problem in str(caught.value)


@pytest.mark.parametrize("value", [-1, None])
def test_numbers_without_a_class_are_missing_labels(value):
    features = Features({"label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"label": [0, value, 1]}, features=features)

    with pytest.raises(DataError, match="example 2 has none"):
        label_names(rows, "label", "x")


def test_a_class_number_out_of_range_is_none():
    rows = Dataset.from_dict({"label": [0, 5]}).cast(Features({"label": Value("int64")}))
    rows = rows.map(lambda row: row, features=Features({"label": Value("int64")}))
    rows.info.features = Features({"label": ClassLabel(names=["no", "yes"])})

    with pytest.raises(DataError, match="example 2 has none"):
        label_names(rows, "label", "x")
