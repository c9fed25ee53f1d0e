from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from lorakit.training.dtype_choice import AUTOCAST, FLOAT32
from lorakit.training.dtype_timing import (
    batch_of,
    batch_step,
    rounds_after,
    time_alternately,
    warm_up,
)


def clock(name, seconds, calls):
    """Return a step that notes its calls and pretends to take the next of some seconds."""
    remaining = iter(seconds)

    def step():
        calls.append(name)
        return next(remaining)

    return step


def test_steps_alternate_and_the_first_round_warms_up():
    calls = []
    times = time_alternately(
        {
            FLOAT32: clock("a", [9.0, *[0.25] * 9], calls),
            AUTOCAST: clock("b", [9.0, *[0.125] * 9], calls),
        }
    )
    assert times == {FLOAT32: 9.0, AUTOCAST: 9.0}  # a long first round is the only one
    assert calls == ["a", "b"]
    calls = []
    times = time_alternately(
        {
            FLOAT32: clock("a", [0.4, 0.2, 0.3], calls),
            AUTOCAST: clock("b", [0.3, 0.1, 0.1], calls),
        }
    )
    assert times == {FLOAT32: pytest.approx(0.25), AUTOCAST: 0.1}
    assert calls == ["a", "b"] * 3


@pytest.mark.parametrize(("first_s", "rounds"), [(0.001, 9), (0.75, 2), (1.6, 0)])
def test_the_time_of_a_measurement_is_bounded(first_s, rounds):
    assert rounds_after(first_s) == rounds


def collate(examples):
    """Return the lengths of the examples, and what is not a tensor."""
    lengths = [len(example["input_ids"]) for example in examples]
    return {"lengths": torch.tensor(lengths), "names": ["not a tensor"]}


def encoded_lengths(lengths):
    """Return examples of given lengths."""
    rows = {"input_ids": [[1] * length for length in lengths]}
    return SimpleNamespace(train=Dataset.from_dict(rows))


def test_half_of_the_tokens_are_in_longer_examples_than_the_batch():
    batch = batch_of(encoded_lengths([1, 50, 10, 11, 2, 12, 60]), collate, rows=3)
    assert list(batch) == ["lengths"]
    assert batch["lengths"].tolist() == [12, 50, 60]  # 86 of 146 tokens are in up to 50
    batch = batch_of(encoded_lengths([9] * 20 + [100]), collate, rows=2)
    assert batch["lengths"].tolist() == [9, 9]


def test_few_or_long_examples_make_a_smaller_batch():
    assert batch_of(encoded_lengths([5, 5]), collate, rows=8)["lengths"].tolist() == [5, 5]
    assert len(batch_of(encoded_lengths([400] * 9), collate, rows=8)["lengths"]) == 2
    assert len(batch_of(encoded_lengths([4000] * 9), collate, rows=8)["lengths"]) == 1


class Model(torch.nn.Module):
    """A model that notes the dtypes and the rows that it computes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.dtypes, self.rows = [], []

    def forward(self, x):
        h = self.layer(x)
        self.dtypes.append(h.dtype)
        self.rows.append(len(x))
        return SimpleNamespace(loss=h.float().sum())


def test_what_happens_once_is_in_no_time():
    models = {FLOAT32: Model(), AUTOCAST: Model()}
    warm_up(models, {"x": torch.ones(5, 4)})
    assert [model.rows for model in models.values()] == [[1], [1]]
    assert models[AUTOCAST].dtypes == [torch.bfloat16]


def test_a_step_leaves_no_gradients_and_autocasts_if_asked():
    model = Model()
    for precision in (FLOAT32, AUTOCAST):
        assert batch_step(model, precision, {"x": torch.ones(2, 4)})() > 0
    assert model.dtypes == [torch.float32, torch.bfloat16]
    assert all(parameter.grad is None for parameter in model.parameters())
