"""The buffers of rows that decode together."""

import random

import pytest
import torch

from lorakit.serving.engine.batch_cache import BatchCache

HEADS, WIDTH, LAYERS = 2, 3, 2
COLUMN_BYTES = LAYERS * 2 * HEADS * WIDTH * 4


def pair(values):
    """Keys and values (1, heads, tokens, width) that say which token they are of."""
    keys = torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)
    keys = keys.expand(1, HEADS, -1, WIDTH)
    return keys, -keys


def layers_of(values):
    return [pair([v + 0.25 * n for v in values]) for n in range(LAYERS)]


def cache_for(columns=1000, most_rows=8):
    return BatchCache(layers_of([1]), columns * COLUMN_BYTES, most_rows)


def written(cache, tokens):
    """Let all rows write one token, as a model does; return what the first layer attends to."""
    assert cache.has_room()
    given = [[token] for token in tokens]
    for number in range(LAYERS):
        keys = torch.cat([layers_of(each)[number][0] for each in given])
        keys, values = cache.update(keys, -keys, number)
        assert torch.equal(values, -keys)
        if number == 0:
            seen = keys
    mask = cache.attention_mask()
    assert seen.shape == (len(tokens), HEADS, mask.shape[1], WIDTH)
    assert (seen[:, 0, :, 0] * (1 - mask)).abs().sum() == 0  # columns of nobody are zero
    rows = [row[kept.bool()].tolist() for row, kept in zip(seen[:, 0, :, 0], mask, strict=True)]
    assert cache.position_ids().tolist() == [[len(row) - 1] for row in rows]
    assert cache.get_seq_length() == mask.shape[1] - 1
    assert cache.get_mask_sizes(1, 0) == (mask.shape[1], 0)
    cache.advance()
    return rows


def test_rows_attend_to_their_own_tokens_and_write_one_column():
    cache = cache_for()
    cache.join(layers_of([1, 2, 3]), 3)
    assert written(cache, [4]) == [[1, 2, 3, 4]]
    cache.join(layers_of([7]), 1)
    assert written(cache, [5, 8]) == [[1, 2, 3, 4, 5], [7, 8]]
    cache.join(layers_of(list(range(20, 30))), 10)
    assert written(cache, [6, 9, 30])[2] == list(range(20, 31))
    cache.leave(0)
    assert written(cache, [31, 10]) == [list(range(20, 32)), [7, 8, 9, 10]]
    assert [layer[0][0, 0, :, 0].tolist() for layer in cache.row(1)] == [
        [7, 8, 9, 10],
        [7.25, 8.25, 9.25, 10.25],
    ]


@pytest.mark.parametrize("columns", [90, 1000])
def test_any_order_of_joining_and_leaving_keeps_the_rows(columns):
    draw = random.Random(columns)
    cache, rows, longest = cache_for(columns, most_rows=6), [], 0
    for step in range(300):
        length = draw.randint(1, 30)
        if draw.random() < 0.3 and cache.fits([length]):
            rows.append([1000 * step + n for n in range(length)])
            cache.join(layers_of(rows[-1]), length)
        while rows and not cache.has_room():
            cache.leave(len(rows) - 1)
            rows.pop()
        if rows and (draw.random() < 0.1 or len(rows[0]) > 50):
            row = draw.randrange(len(rows))
            cache.leave(row)
            rows[row] = rows[-1]
            rows.pop()
        if rows and cache.has_room():
            for row in rows:
                row.append(row[-1] + 1)
            assert written(cache, [row[-1] for row in rows]) == rows
        assert cache.allocated_bytes <= columns * COLUMN_BYTES
        longest = max(longest, len(rows))
    assert longest >= 3


def test_what_fits():
    cache = cache_for(columns=100, most_rows=3)
    assert cache.most_tokens == 100
    assert cache.column_bytes == COLUMN_BYTES
    assert cache.fits([99]) and not cache.fits([100])
    assert cache.fits([20, 20, 20]) and not cache.fits([5, 5, 5, 5])
    assert not cache.fits([5, 50])  # both would take as many columns
    cache.join(layers_of(list(range(40))), 40)
    assert cache.fits([10]) and not cache.fits([10, 10])


def test_a_row_alone_uses_all_memory_and_no_more():
    cache = cache_for(columns=20)
    cache.join(layers_of([1, 2]), 2)
    while cache.has_room():
        written(cache, [5])
    assert len(cache.row(0)[0][0][0, 0]) == 20


def test_layers_that_use_the_keys_of_others_have_none():
    cache = BatchCache([pair([1]), None], 1 << 20, 4)
    cache.join([pair([1, 2]), None], 2)
    assert cache.row(0)[1] is None
    assert cache.column_bytes == COLUMN_BYTES // 2
    cache.leave(0)
    assert cache.starts == []


def test_what_an_infinite_row_leaves_is_cleared():
    cache = cache_for()
    cache.join([pair([torch.inf] * 4)] * LAYERS, 4)
    cache.join(layers_of([1]), 1)
    cache.leave(0)
    cache.join(layers_of([2]), 1)
    assert written(cache, [3, 4]) == [[1, 3], [2, 4]]
    assert all(torch.isfinite(layer.keys).all() for layer in cache.layers)
