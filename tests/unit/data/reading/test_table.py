"""The examples of a file as a table."""

import pyarrow as pa
import pytest
from datasets import Value

from lorakit.data.reading.table import in_memory_dataset, require_names
from lorakit.errors import DataError


@pytest.mark.parametrize(("name", "shown"), [("a\0b", "a\\x00b"), ("\udfff", "\\udfff")])
def test_column_names_are_of_whole_characters(name, shown):
    require_names(["text", "名前", ""], "data.train: got 'x.csv'")
    with pytest.raises(DataError) as caught:
        require_names(["text", name], "data.train: got 'x.csv'")
    assert str(caught.value) == (
        f"Could not read data.train: got 'x.csv', which has a column called '{shown}', expected "
        "whole characters other than NUL. Rename the column."
    )


def test_a_dataset_has_its_types_and_no_file():
    table = pa.table({"n": pa.array([1, 2], pa.int64())})

    plain, typed = in_memory_dataset(table), in_memory_dataset(table, {"n": Value("int64")})

    assert plain.features == typed.features and plain["n"][:] == typed["n"][:] == [1, 2]
    assert plain.cache_files == [] and plain._fingerprint != in_memory_dataset(table)._fingerprint
    with pytest.raises(ValueError, match="type"):
        in_memory_dataset(table, {"n": Value("string")})
