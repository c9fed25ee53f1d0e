import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from lorakit.training.trainers.process_trainer import examples_before, mask_repeated_labels


def dealt(rows, batch, processes, split=False):
    """Return, for each process, its batches as accelerate deals them, and their sampler."""
    samplers = [
        BatchSamplerShard(
            BatchSampler(SequentialSampler(range(rows)), batch, drop_last=False),
            num_processes=processes,
            process_index=index,
            split_batches=split,
        )
        for index in range(processes)
    ]
    return [(sampler, list(sampler)) for sampler in samplers]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 11, 12, 13])
@pytest.mark.parametrize(
    ("processes", "batch", "split"), [(2, 3, False), (3, 2, False), (2, 4, True)]
)
def test_each_row_counts_once(rows, processes, batch, split):
    counted = []
    for sampler, batches in dealt(rows, batch, processes, split):
        for number, indices in enumerate(batches):
            given = {"labels": torch.tensor(indices)}
            labels = mask_repeated_labels(given, sampler, number, rows)["labels"]
            counted += labels[labels != -100].tolist()
            assert given["labels"].tolist() == indices
    assert sorted(counted) == list(range(rows))


def test_rows_laid_end_to_end_go_together():
    (_, _), (sampler, _) = dealt(4, 4, 2)
    flat = {"labels": torch.ones(1, 9, dtype=torch.long)}
    assert mask_repeated_labels(flat, sampler, 0, 4)["labels"].eq(-100).all()
    (_, _), (sampler, _) = dealt(6, 4, 2)
    assert mask_repeated_labels(flat, sampler, 0, 6)["labels"].eq(1).all()


def test_a_sampler_of_another_kind_repeats_nothing():
    sampler = BatchSampler(SequentialSampler(range(3)), 2, drop_last=False)
    assert examples_before(sampler, 5) == 0
    batch = {"labels": torch.ones(2)}
    assert mask_repeated_labels(batch, sampler, 1, 3) is batch
