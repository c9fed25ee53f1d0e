import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from lorakit.data.targets import (
    class_weights_of,
    known_labels,
    label_sets,
    numbers_of,
    problem_type_of,
    size_note,
    split_texts,
)
from lorakit.errors import ConfigError, DataError


def labels(values, feature=None):
    features = None if feature is None else Features({"label": feature})
    return Dataset.from_dict({"label": values}, features=features)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], "single_label_classification"),
        ([0, 1], "single_label_classification"),
        (["3.5", "4.0", "3.5", "4.0"], "single_label_classification"),
        (["0.31", "0.7", "0.2"], "regression"),
        ([0.5, 1.0], "regression"),
        ([float(i) for i in range(30)], "regression"),
        ([[0.5], [1.0]], "regression"),
        ([["0.31"], ["0.7"], ["0.2"]], "regression"),
        ([["a"], []], "multi_label_classification"),
        ([[1], [2, 3]], "multi_label_classification"),
    ],
)
def test_what_labels_are(values, expected):
    assert problem_type_of(labels(values), "label", "x") == expected
    assert problem_type_of(labels(values), "absent", "x") == "single_label_classification"


def test_whole_numbers_with_a_fraction_are_ambiguous():
    with pytest.raises(DataError, match=r"got 1\.0, expected whole numbers or texts for classes"):
        problem_type_of(labels([1.0, 2.0]), "label", "x")


@pytest.mark.parametrize("one", [1, 1.0, True])
def test_a_number_for_each_label_is_ambiguous(one):
    none = type(one)(0)
    bits = labels([[one, none], [none, one], [one, one]])
    for read in (problem_type_of, label_sets):
        with pytest.raises(DataError, match="can be read in two ways in x, column 'label'"):
            read(bits, "label", "x")
    assert numbers_of(labels([[1.0, 1.0]]), "label", "x") == [[1.0, 1.0]]
    assert label_sets(labels([[0, 1], [1, 0]]), "label", "x") == [["0", "1"], ["1", "0"]]
    named = labels([[0, 1], [1, 0]], List(ClassLabel(names=["red", "blue"])))
    assert label_sets(named, "label", "x") == [["red", "blue"], ["blue", "red"]]


def test_sets_of_labels():
    assert label_sets(labels([["b", "a", "b"], []]), "label", "x") == [["b", "a"], []]
    named = labels([[1], [0, 1]], List(ClassLabel(names=["no", "yes"])))
    assert label_sets(named, "label", "x") == [["yes"], ["no", "yes"]]
    assert known_labels(named, "label") == ("no", "yes")
    assert known_labels(labels([["a"]]), "label") is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([["a"], None], "Not lists of labels in x, column 'label': got None in example 2"),
        ([["a", None]], "Not lists of labels"),
        (["a|b"], "set data.label_separator if one text has"),
        ([["a"], ["a "]], "Two labels are alike"),
    ],
)
def test_what_is_no_set_of_labels(values, said):
    with pytest.raises(DataError) as caught:
        label_sets(labels(values), "label", "x")
    assert said in str(caught.value)


def test_numbers():
    assert numbers_of(labels(["1.5", "-2"]), "label", "x") == [[1.5], [-2.0]]
    assert numbers_of(labels([[1, 2], [3, 4]]), "label", "x") == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "values", [["1", "much"], ["1", "nan"], ["1", None], [True, True], [[1.0], []]]
)
def test_what_is_no_number(values):
    with pytest.raises(DataError, match=r"^Not numbers in x, column 'label': got"):
        numbers_of(labels(values), "label", "x")


def test_uneven_lists_are_refused():
    with pytest.raises(DataError, match="got 1 numbers in example 2, expected 2 as in the first"):
        numbers_of(labels([[1.0, 2.0], [3.0]]), "label", "x")


def test_numbers_far_from_zero_are_said():
    assert size_note([[0.5], [1.5]], "label") == []
    assert size_note([[50.0], [70.0]], "label")[0].startswith(
        "The numbers of 'label' have mean 60 and standard deviation 10"
    )


def test_class_weights():
    names = ["a", "a", "a", "b"]
    assert class_weights_of("balanced", names, ("a", "b")) == pytest.approx((2 / 3, 2.0))
    assert class_weights_of("balanced", names, ("a", "b", "c"))[2] == 1.0
    assert class_weights_of({"b": 3.0}, names, ("a", "b")) == (1.0, 3.0)
    assert class_weights_of(None, names, ("a", "b")) is None
    with pytest.raises(ConfigError, match=r"^No such class in data.class_weights: got c, expected"):
        class_weights_of({"c": 3.0}, names, ("a", "b"))


def test_texts_are_split():
    made = split_texts(
        Dataset.from_dict({"label": ["a | b", None, "c"], "n": [1, 2, 3]}), "label", "|"
    )

    assert made["label"][:] == [["a", "b"], [], ["c"]]
    assert made.column_names == ["label", "n"]
    kept = labels([1, 2], Value("int64"))
    assert split_texts(kept, "label", "|") is kept
