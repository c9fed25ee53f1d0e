"""Examples have one digest, however they are stored."""

from datasets import Dataset

from lorakit.data.dataset_digest import dataset_digest


def test_other_examples_have_another_digest():
    one = Dataset.from_dict({"input_ids": [[1, 2], [3]], "parts": [[1, 1], [1, 0]]})
    assert dataset_digest(one) == dataset_digest(Dataset.from_list([*one]))
    assert dataset_digest(one) != dataset_digest(one.select([1, 0]))
