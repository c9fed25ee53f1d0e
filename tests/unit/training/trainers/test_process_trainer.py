from functools import partial

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit.training.losses.counted_labels import CountingCollator, count_labels
from lorakit.training.throughput import real_tokens
from lorakit.training.trainers.process_trainer import examples_before, mask_repeated_labels


def dealt(rows, batch, processes):
    """Return, for each process, its batches as accelerate deals them, and their sampler."""
    samplers = [
        BatchSamplerShard(
            BatchSampler(SequentialSampler(range(rows)), batch, drop_last=False),
            num_processes=processes,
            process_index=index,
        )
        for index in range(processes)
    ]
    return [(sampler, list(sampler)) for sampler in samplers]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 11, 12, 13])
@pytest.mark.parametrize(("processes", "batch"), [(2, 3), (3, 2)])
def test_each_row_counts_once(rows, processes, batch):
    counted = []
    for sampler, batches in dealt(rows, batch, processes):
        for number, indices in enumerate(batches):
            given = {"labels": torch.tensor(indices)}
            labels = mask_repeated_labels(given, sampler, number, rows)["labels"]
            counted += labels[labels != -100].tolist()
            assert given["labels"].tolist() == indices
    assert sorted(counted) == list(range(rows))


@pytest.mark.parametrize("rows", range(4, 9))
@pytest.mark.parametrize("is_packed", [False, True])
def test_of_rows_laid_end_to_end_those_that_are_repeated_become_padding(rows, is_packed):
    (_, _), (sampler, _) = dealt(rows, 4, 2)
    flat = DataCollatorForLanguageModeling(0, padding_free=True, pad_to_multiple_of=8)
    collate = CountingCollator(flat, partial(count_labels, shifts=True))
    texts = [[2, 3], [4, 2], [2, 2], [5, 2]] if is_packed else [[5], [2], [3], [4]]
    examples = [{"input_ids": [7] * sum(one)} for one in texts]
    if is_packed:
        examples = [{**e, "seq_lengths": one} for e, one in zip(examples, texts, strict=True)]
    batch = mask_repeated_labels(collate(examples), sampler, 0, rows)
    expected = [length for one in texts[: rows - 4] for length in one]
    assert int((batch["labels"] != -100).sum()) == sum(expected) - len(expected)
    assert int(real_tokens(batch)) == sum(expected)


def test_a_sampler_of_another_kind_repeats_nothing():
    sampler = BatchSampler(SequentialSampler(range(3)), 2, drop_last=False)
    assert examples_before(sampler, 5) == 0
    batch = {"labels": torch.ones(2)}
    assert mask_repeated_labels(batch, sampler, 1, 3) is batch
