from types import SimpleNamespace

import numpy as np
from datasets import Dataset

from lorakit.data import Place, Splits
from lorakit.recipes.recipe import DataConfig
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits


def numbers(*values):
    return Dataset.from_dict({"number": list(values)})


def encode(examples, kind, where, cache):
    """Keep the odd numbers; 5 and more are cut."""
    odd = [n for n in examples["number"] if n % 2]
    kept = np.flatnonzero(np.array(examples["number"]) % 2)
    split = EncodedSplit(numbers(*odd), sum(n >= 5 for n in odd), kept=kept)
    return split.noting_left_out(examples, kind, "they are even")


def test_each_split_is_encoded_and_its_notes_are_collected():
    splits = Splits(numbers(1, 2, 3, 4, 5), numbers(7, 9))

    made = encode_splits(splits, DataConfig(train="some"), 4, encode, ["first"])

    assert made.train["number"][:] == [1, 3, 5] and made.validation["number"][:] == [7, 9]
    assert made.kept.tolist() == [0, 2, 4] and made.cut_examples == 1
    assert made.notes == (
        "first",
        "1 of 5 training examples were cut to 4 tokens (data.max_length).",
        "2 of 5 training examples were left out: they are even.",
        "2 of 2 validation examples were cut to 4 tokens (data.max_length).",
    )


def test_examples_that_are_all_kept_need_no_indices():
    made = encode_splits(Splits(numbers(1, 3), None), DataConfig(train="some"), 4, encode, [])
    assert made.kept is None and made.notes == () and made.validation is None
    assert made.stream is None


def test_parts_of_a_stream_are_encoded_but_not_kept():
    caches = []

    def encode_part(examples, where, cache):
        caches.append(cache.budget_bytes)
        return examples

    def parts():
        yield numbers(8), Place("the rest")
        yield numbers(9), Place("the rest")

    source = SimpleNamespace(parts=parts, weight=1.0)
    stream = SimpleNamespace(sources=[source], seed=0, shuffle_buffer=1)
    splits = Splits(numbers(1), None, stream=stream)
    made = encode_splits(splits, DataConfig(train="some"), 4, encode, [], encode_part)
    found = iter(made.stream)
    assert sorted(next(found)["number"] for _ in range(2)) == [8, 9] and set(caches) == {0}
