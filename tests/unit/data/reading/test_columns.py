"""Columns that are missing or not used, and values that are missing."""

import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

from lorakit.data.reading.columns import (
    hiding_progress_bars,
    is_missing,
    require_columns,
    unused_note,
)
from lorakit.errors import DataError


def test_missing_columns_are_all_named_with_those_there():
    rows = Dataset.from_list([{"txet": "a", "score": 1}])

    with pytest.raises(DataError) as caught:
        require_columns(rows, {"data.text": "text", "data.label": "label"}, "the rows of 'x.csv'")

    assert str(caught.value) == (
        "Columns are missing in the rows of 'x.csv': data.text: got 'text', expected a column of "
        "the data. Did you mean 'txet'? data.label: got 'label', expected a column of the data. "
        "Columns of the data: txet, score. Name them in the recipe, as in data.text=txet."
    )


def test_columns_that_are_not_used_are_noted_escaped():
    examples = Dataset.from_dict({"text": ["a"], "no\x1bte": ["b"], "id": [1]})

    assert unused_note(examples, ["text", "absent"]) == [
        "Columns that are not used: no\\x1bte, id."
    ]
    assert unused_note(examples, examples.column_names) == []


def test_values_without_a_visible_character_are_missing():
    assert all(map(is_missing, [None, float("nan"), "", " \n\t\u3000"]))
    assert not any(map(is_missing, ["x", 0, 0.0, False, []]))


@pytest.mark.parametrize("switch", [enable_progress_bars, disable_progress_bars])
def test_progress_bars_are_hidden_and_then_as_before(switch):
    enabled = is_progress_bar_enabled()
    try:
        switch()
        before = is_progress_bar_enabled()
        with pytest.raises(ZeroDivisionError), hiding_progress_bars():
            assert not is_progress_bar_enabled()
            raise ZeroDivisionError
        assert is_progress_bar_enabled() == before
    finally:
        (enable_progress_bars if enabled else disable_progress_bars)()
