from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from lorakit.training.dtype_choice import AUTOCAST, FLOAT32
from lorakit.training.dtype_timing import (
    batch_step,
    batches_of,
    rounds_after,
    time_alternately,
    time_precisions,
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
    slow = [
        {FLOAT32: clock("a", [9.0], calls), AUTOCAST: clock("b", [8.0], calls)},
        {FLOAT32: clock("c", [1.0], calls), AUTOCAST: clock("d", [2.0], calls)},
    ]
    # A long first round is the only one.
    assert time_alternately(slow) == {FLOAT32: 10.0, AUTOCAST: 10.0}
    calls.clear()
    quick = [
        {FLOAT32: clock("a", [0.8, 0.3, 0.2], calls), AUTOCAST: clock("b", [0.5, 0.1, 9], calls)},
        {FLOAT32: clock("c", [0.2, 0.1, 0.5], calls), AUTOCAST: clock("d", [0.1, 0.3, 0.4], calls)},
    ]
    # What another program adds in one round is in none of the least times.
    assert time_alternately(quick) == {FLOAT32: pytest.approx(0.3), AUTOCAST: pytest.approx(0.4)}
    assert calls == ["a", "b", "c", "d"] * 3


@pytest.mark.parametrize(("first_s", "rounds"), [(0.001, 9), (1.6, 2), (4.1, 0)])
def test_the_time_of_a_measurement_is_bounded(first_s, rounds):
    assert rounds_after(first_s) == rounds


def lengths_of(batches):
    return [[len(example["input_ids"]) for example in batch] for batch in batches]


def encoded_lengths(lengths):
    """Return examples of given lengths."""
    rows = {"input_ids": [[1] * length for length in lengths]}
    return SimpleNamespace(train=Dataset.from_dict(rows))


def test_the_batches_have_short_and_long_examples_of_the_data():
    # Of 147 tokens, a quarter is in examples of up to 13, and three quarters in those of up to 60.
    short, long = lengths_of(batches_of(encoded_lengths([1, 50, 10, 11, 2, 13, 60]), rows=3))
    assert (short, long) == ([11, 13, 50], [13, 50, 60])
    short, long = lengths_of(batches_of(encoded_lengths([9] * 20 + [100]), rows=2))
    assert (short, long) == ([9, 9], [9, 100])


def test_few_or_long_examples_make_a_smaller_batch():
    assert lengths_of(batches_of(encoded_lengths([5, 5]), rows=8)) == [[5, 5]] * 2
    assert lengths_of(batches_of(encoded_lengths([300] * 9), rows=8)) == [[300] * 2] * 2
    assert lengths_of(batches_of(encoded_lengths([4000] * 9), rows=8)) == [[4000]] * 2


class Model(torch.nn.Module):
    """A model that notes the dtypes and the shapes that it computes."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.dtypes, self.sizes = [], []

    def forward(self, x):
        h = self.layer(x)
        self.dtypes.append(h.dtype)
        self.sizes.append(tuple(x.shape[:-1]))
        return SimpleNamespace(loss=h.float().sum())


@dataclass
class Collator:
    """Makes an input of the width of the longest example."""

    pad_to_multiple_of: int | None = None

    def __call__(self, examples):
        multiple = self.pad_to_multiple_of or 1
        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // multiple) * multiple
        return {"x": torch.ones(len(examples), width, 4), "names": ["not a tensor"]}


def test_each_precision_has_the_batches_of_its_training(tmp_path):
    models = {FLOAT32: Model(), AUTOCAST: Model()}
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, use_cpu=True)

    def build(model, encoded, quiet):
        assert model is models[FLOAT32] and quiet.output_dir != str(tmp_path)
        trainer = SimpleNamespace(data_collator=Collator())
        trainer.timed_batch = lambda examples: trainer.data_collator(examples)
        return trainer

    times = time_precisions(models, encoded_lengths([9] * 20 + [100]), arguments, build)
    assert times.keys() == models.keys() and all(seconds >= 0 for seconds in times.values())
    assert set(models[FLOAT32].sizes) == {(2, 9), (2, 100)}
    assert set(models[AUTOCAST].sizes) == {(2, 32), (2, 128)}


def test_a_step_leaves_no_gradients_and_autocasts_if_asked():
    model = Model()
    for precision in (FLOAT32, AUTOCAST):
        assert batch_step(model, precision, {"x": torch.ones(2, 4)})() >= 0
    assert model.dtypes == [torch.float32, torch.bfloat16]
    assert all(parameter.grad is None for parameter in model.parameters())
