import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.reading.json_files import read_json
from lorakit.errors import DataError


def read(tmp_path, content, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_json(path, "data.train")


def lines(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


TOOL = {"name": "f", "arguments": {"city": None, "temperature": 0.3, "n": 10**30, "id": "1"}}


def test_nested_values_keep_their_own_keys_nulls_and_digits(tmp_path):
    values = [{"tools": [TOOL]}, {"tools": [{"name": "g", "arguments": {"to": [1, "a"]}}]}, {}]

    made = read(tmp_path, lines(*values)).dataset

    assert list(made) == [{"tools": v.get("tools")} for v in values]
    assert list(made.select([1])) == [values[1]]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_documents_are_understood(tmp_path, name, indent):
    examples = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]

    for document in (examples, {"data": examples}, {"data": examples, "version": "1"}):
        made = read(tmp_path, json.dumps(document, indent=indent), name)
        assert made.dataset.to_list() == examples
        assert made.lines is None
    assert made.notes == ("The examples are those under 'data' of the file.",)


@pytest.mark.parametrize(
    "document",
    [
        {"text": ["a", "b"], "label": [1, 2]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 2}},
    ],
)
def test_columns_are_understood_in_json(tmp_path, document):
    made = read(tmp_path, json.dumps(document), "rows.json")

    assert made.dataset.to_list() == [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    assert made.notes == ("The file is read as columns: text, label.",)


def test_one_line_is_one_example(tmp_path):
    example = {"tokens": ["a", "b"], "tags": ["O", "X"]}

    assert read(tmp_path, lines(example)).dataset.to_list() == [example]
    talk = {"messages": [{"role": "user", "content": "a"}]}
    assert read(tmp_path, lines(talk), "rows.json").dataset[0] == talk


def test_blank_lines_are_counted_and_skipped(tmp_path):
    made = read(tmp_path, '\ufeff{"a": "x\u2028y"}\r\n\r\n {"a": "z"} \n')

    assert made.dataset["a"][:] == ["x\u2028y", "z"]
    np.testing.assert_array_equal(made.lines, [1, 3])


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("null", "whose line 1 is null"),
        ("null\n", "whose line 1 is null"),
        ("1\n2\n", "whose line 1 is a number"),
        ('"text"\n', "whose line 1 is a text"),
        ("NaN", "whose line 1 is a number"),
        ('{"a": 1}\n[1]\n', "whose line 2 is a list"),
        ('{"a": 1}\nnull\n', "whose line 2 is null"),
        ("[1, 2]", "whose item 1 is a number"),
        ('["a"]\n["b"]\n', "whose line 1 is a list"),
        ('{"a": 1},\n{"a": 2},\n', "not JSON at line 1, column 9 (extra data"),
        ('[{"a": 1},\n{"a": 2},\n]\n', "not JSON at line "),
        ('{"a": 1}\n{"a": 1\n', "not JSON at line 2, column 8 "),
        ("{'a': 1}\n", "not JSON at line 1, column 2"),
        ('{"a": 1, "a": 2}\n', "the key 'a' appears twice in one object"),
        ('{"a": ' + "9" * 5000 + "}\n", "in line 1 (Exceeds the limit"),
        ('{"a": ' + DEEP + "}\n", "which is nested too deeply"),
        (DEEP, "which is nested too deeply"),
        ('{"a": "\\ud800"}\n', "column 'a' holds half a surrogate pair"),
        ('{"\\udfff": "x"}\n', "which has a column called '\\udfff', expected whole characters"),
        ('{"a\\u0000b": "x"}\n', "which has a column called 'a\\x00b'"),
        (b'{"a": "b"}\n{"a": "caf\xe9"}\n', "whose line 2 has the byte 0xe9"),
        ("a,b\n1,2\n", "not JSON at line 1, column 1"),
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, problem, name):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)

    message = str(caught.value)
    assert message.startswith(f"Could not read data.train: got '{tmp_path}/{name}', ")
    assert problem in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"text": ["a"], "label": [1, 2]}, "different lengths (1 in 'text', 2 in 'label')"),
        ({"train": [{"a": 1}], "test": [{"a": 2}]}, "several lists of examples (train, test)"),
    ],
)
def test_documents_that_can_mean_several_things_are_explained(tmp_path, document, problem):
    with pytest.raises(DataError) as caught:
        read(tmp_path, json.dumps(document), "rows.json")

    assert problem in str(caught.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=4))
def test_what_a_json_writer_writes_is_read_back(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("json")
    made = read(folder, lines(*({"value": value} for value in values)))

    assert [repr(value) for value in made.dataset["value"][:]] == [repr(v) for v in values]
