"""Which term acts on which tokens, and what else belongs to a row."""

import torch

from lorakit.ops import LowRankTerm, RowScale
from lorakit.ops.per_row_terms import PerRowTerms


def term(row_scale=None):
    return LowRankTerm(torch.zeros(2, 6), torch.zeros(4, 2), 1.0, row_scale=row_scale)


def test_runs_of_rows_with_one_update_are_one_span():
    rows = PerRowTerms([term(), term()], (0, 0, -1, 1))
    assert rows.spans(12) == [(0, 6, 0), (9, 12, 1)]
    assert rows.spans(4) == [(0, 2, 0), (3, 4, 1)]


def test_segments_have_their_lengths():
    rows = PerRowTerms([term(), term()], (1, -1, 1, 1, 0), lengths=(2, 3, 1, 4, 1))
    assert rows.spans(11) == [(0, 2, 1), (5, 10, 1), (10, 11, 0)]
    got = rows.along_tokens(torch.arange(5.0)[:, None], torch.zeros(1, 11, 1))
    assert got.flatten().tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def test_values_of_rows_broadcast_over_their_tokens():
    rows = PerRowTerms([term()], (0, -1))
    got = rows.along_tokens(torch.ones(2, 4), torch.zeros(2, 3, 5, 4, dtype=torch.bfloat16))
    assert got.shape == (2, 1, 1, 4) and got.dtype == torch.bfloat16


def test_biases_and_scales_of_rows_without_one():
    trained, base = torch.full((4,), 7.0), torch.full((4,), 3.0)
    scale = RowScale(torch.full((4,), 6.0), torch.full((4,), 2.0))
    rows = PerRowTerms([term(), term(scale)], (1, 0, -1), [None, trained])
    assert rows.row_biases(base)[:, 0].tolist() == [7, 3, 3]
    assert rows.row_biases(None)[:, 0].tolist() == [7, 0, 0]
    assert rows.row_scales()[:, 0].tolist() == [3, 1, 1]
    plain = PerRowTerms([term()], (0,), [None])
    assert plain.row_scales() is None and plain.biases == ()
