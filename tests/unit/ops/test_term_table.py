"""Terms described once, of which batches take some."""

import pytest
import torch

from lorakit.ops import LowRankTerm
from lorakit.ops.grouped import low_rank_linear_per_row
from lorakit.ops.per_row_terms import PerRowTerms
from lorakit.ops.term_table import TermTable, spans_in_batches, spans_of


def terms(count):
    generator = torch.Generator().manual_seed(0)
    return [
        LowRankTerm(
            torch.randn(r + 1, 6, generator=generator),
            torch.randn(4, r + 1, generator=generator),
            0.5 + r,
        )
        for r in range(count)
    ]


def test_runs_of_rows_are_spans():
    listed, spans = spans_of((0, 0, -1, 1), (2, 2, 2, 2))
    assert listed == [(0, 4, 0), (6, 8, 1)]
    assert (spans.begins.tolist(), spans.ends.tolist(), spans.terms.tolist()) == (
        [0, 6],
        [4, 8],
        [0, 1],
    )
    assert spans_of((-1, -1), (1, 1))[0] == []


def test_rows_that_a_pooler_has_left_have_no_padding():
    assert spans_in_batches((0, 0, 1), 5, (3, 3, 5)) == (
        [(0, 3, 0), (5, 8, 0), (10, 15, 1)],
        [0, -2, -10],
    )
    assert spans_in_batches((0, 0, 1), 1, (3, 3, 5)) == ([(0, 2, 0), (2, 3, 1)], [0, -2])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0), (1,)])
def test_a_batch_of_terms_from_a_table_is_that_of_the_terms(order):
    x, W0 = torch.randn(5, 1, 6), torch.randn(4, 6)
    table, all_terms = TermTable(), terms(3)
    slots = [table.put(term) for term in all_terms]
    chosen = [all_terms[n] for n in order]
    index = [0, -1, *range(len(order))][:5]
    index += [0] * (5 - len(index))
    rows = PerRowTerms(chosen, index, table=(table, [slots[n] for n in order]))
    with torch.no_grad():
        h = low_rank_linear_per_row(x, W0, None, rows)
        expected = low_rank_linear_per_row(x, W0, None, PerRowTerms(chosen, index))
    assert torch.equal(h, expected)


def test_a_freed_slot_is_used_again():
    table, (first, second, third) = TermTable(), terms(3)
    slots = [table.put(first), table.put(second)]
    table.free(slots[0])
    assert table.put(third) == slots[0]
    assert table.put(first) == 2
    assert table.put(second, slots[1]) == slots[1]
