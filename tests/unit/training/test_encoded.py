import numpy as np
from datasets import Dataset

from lorakit.data.mixture import Mixture
from lorakit.training.encoded import Encoded


def test_the_mixture_is_that_of_the_examples_that_were_kept():
    encoded = Encoded(Dataset.from_dict({"input_ids": [[1], [2]]}), None, kept=np.array([0, 3]))
    mixed = encoded.with_mixture(Mixture((2.0, 1.0), np.array([0, 0, 1, 1])))

    assert mixed.mixture.source_of.tolist() == [0, 1]
    assert (encoded.epoch_examples, mixed.epoch_examples) == (2, 3)
    assert encoded.with_mixture(None).mixture is None
