"""How examples are found: pieces by all that comes before them, whatever is beside them."""

import pytest
import torch

from lorakit.training.frozen_part.keys import rows_of


def batch(*rows, **others):
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), **others}


def keys(inputs, row=0, piece_tokens=2, limits=()):
    return [piece.key for piece in rows_of(inputs, piece_tokens, limits)[row].pieces]


def test_rows_that_begin_alike_have_the_same_first_pieces():
    first, second = rows_of(batch([5, 6, 7, 8, 9], [5, 6, 7, 4, 9]), 2)
    same = [a.key == b.key for a, b in zip(first.pieces, second.pieces, strict=True)]
    assert same == [True, False, False], "the last tokens are the same, what is before them not"
    assert [(piece.begin, piece.end) for piece in first.pieces] == [(0, 2), (2, 4), (4, 5)]
    assert (first.begin, first.end, first.key) == (0, 5, first.pieces[-1].key)


def test_a_row_is_found_in_another_batch_with_other_padding():
    assert keys(batch([5, 6, 7, 0, 0], [5, 6, 7, 8, 9])) == keys(batch([5, 6, 7]))


def test_a_row_that_is_one_piece_shares_nothing_with_one_that_goes_on():
    short, long = (keys(batch(ids), piece_tokens=None) for ids in ([5, 6], [5, 6, 7]))
    assert len(short) == len(long) == 1 and short != long


def test_a_row_that_begins_elsewhere_is_another():
    assert keys(batch([0, 5, 6])) != keys(batch([5, 6, 0]))


def test_other_inputs_and_autocast_are_part_of_the_keys():
    plain = batch([5, 6, 7])
    positions = [{**plain, "position_ids": torch.tensor([[0, 1, n]])} for n in (2, 0)]
    found = [keys(one) for one in (plain, *positions)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(keys(plain))
    assert len({one[-1] for one in found}) == 4
    assert found[1][0] == found[2][0], "they differ from the third token on"
    assert keys({**plain, "labels": torch.tensor([[1, 2, 3]])}) == found[0]


def test_a_batch_beyond_a_limit_of_positions_has_other_keys():
    short, long = batch([5, 6, 7]), batch([5, 6, 7, 0], [5, 6, 7, 8])
    assert keys(short) == keys(long)
    assert keys(short, limits=(3,)) != keys(long, limits=(3,))
    assert keys(short, limits=(9,)) == keys(long, limits=(9,))


@pytest.mark.parametrize(
    "inputs",
    [
        {"inputs_embeds": torch.ones(1, 3, 4)},
        {**batch([5, 6, 7]), "cache": object()},
        {**batch([5, 6, 7]), "pixel_values": torch.ones(1, 3, 2)},
        batch([0, 0, 0]),
    ],
    ids=["embeddings", "a cache of keys", "other inputs", "padding alone"],
)
def test_what_is_not_a_batch_of_token_ids_alone_has_no_rows(inputs):
    assert rows_of(inputs) is None
