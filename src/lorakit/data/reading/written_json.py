"""A column of JSON values of any shape, returned exactly as written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Json


@dataclass
class WrittenJson(Json):
    """The datasets library's Json, parsed by Python.

    A column of mappings gives every mapping all keys, filled with nulls; here each keeps only its
    keys. The library's parser changes the last digit of two numbers in five (0.3 becomes
    0.30000000000000004), and reads a string such as "1" as a number.
    """

    pa_type: ClassVar[Any] = pa.json_()
    # The stored name of the type: other readers of a saved dataset only know the library's.
    _type: str = field(default="Json", init=False, repr=False)

    def encode_example(self, example_data: Any) -> str | None:
        """Return a value as JSON."""
        return None if example_data is None else json.dumps(example_data, ensure_ascii=False)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """Return the value of a JSON string."""
        return None if example_data is None else json.loads(example_data)


def json_array(values: list[Any]) -> pa.Array:
    """Return values of any shape as a column for `WrittenJson`."""
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
