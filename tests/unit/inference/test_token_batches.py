"""Batches of texts of like length."""

from types import SimpleNamespace

import pytest
import torch

from lorakit.errors import DataError
from lorakit.inference import classify, token_batches
from lorakit.inference.token_batches import (
    like_length_batches,
    logits_in_batches,
    require_tokens,
)
from tiny_models import t5
from tiny_models.tokenizers import one_piece_per_word


def test_every_text_is_in_one_batch_that_fits():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 60, (200,), generator=generator).tolist()

    batches = list(like_length_batches(lengths, 8, 100))

    assert sorted(number for batch in batches for number in batch) == list(range(200))
    longest = [max(lengths[number] for number in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    sizes = [(len(batch), most) for batch, most in zip(batches, longest, strict=True)]
    assert all(rows <= 8 and rows * most <= 100 for rows, most in sizes)
    assert list(like_length_batches([500, 4], 8, 100)) == [[0], [1]]
    assert list(like_length_batches([], 8, 100)) == []


def test_batches_of_few_tokens_and_small_pools_change_no_prediction(classifier, monkeypatch):
    texts = ["good", "the film was awful very much", "snow is white", "great cat"] * 3
    expected = classify(classifier, texts)
    monkeypatch.setattr(token_batches, "_CPU_BATCH_TOKENS", 8)
    monkeypatch.setattr("lorakit.inference.prediction.POOL_TEXTS", 5)

    for one, other in zip(classify(classifier, texts), expected, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_texts_with_the_end_token_in_them_are_classified_too():
    model = t5("T5ForSequenceClassification").eval()
    loaded = SimpleNamespace(model=model, tokenizer=one_piece_per_word())
    end = model.config.eos_token_id
    ids = [[5, 6, end], [5, end, 6, 7, end], [8, end]]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
    with torch.no_grad():
        found = list(logits_in_batches(loaded, columns, 8))
        for numbers, logits in found:
            for number, row in zip(numbers, logits, strict=True):
                alone = model(input_ids=torch.tensor([ids[number]])).logits[0]
                torch.testing.assert_close(row, alone)
    assert sorted(numbers for numbers, _ in found) == [[0, 2], [1]]


def test_texts_without_a_token_are_refused():
    with pytest.raises(DataError, match=r"A text has no token: got ''"):
        require_tokens({"input_ids": [[5], []]}, ["a", ""])
