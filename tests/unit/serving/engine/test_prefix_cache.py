"""Keys and values of the beginnings of prompts."""

import torch

from lorakit.serving.engine.prefix_cache import BLOCK_TOKENS, PrefixCache

LAYERS, HEADS, WIDTH = 2, 2, 3
BLOCK_BYTES = LAYERS * 2 * HEADS * WIDTH * BLOCK_TOKENS * 4


def layers_of(tokens, adapter=0.0):
    """Keys and values that say of which token, layer and adapter they are."""
    values = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1) + adapter
    values = values.expand(1, HEADS, -1, WIDTH)
    return [(values + 1000 * n, -values - 1000 * n) for n in range(LAYERS)]


def cache_of(blocks):
    return PrefixCache(layers_of([1]), blocks * BLOCK_BYTES)


def test_whole_blocks_of_the_same_beginning_are_found():
    cache, tokens = cache_of(10), list(range(40))
    cache.store("a", tokens, layers_of(tokens))
    assert cache.used_bytes == 2 * BLOCK_BYTES
    for asked, known in (
        ([*tokens, 7], 32),
        (tokens[:33], 32),
        (tokens[:32], 16),  # the last token is read for its logits
        ([*tokens[:20], 99, *tokens[21:]], 16),
        ([99, *tokens[1:]], 0),
        (tokens[:16], 0),
    ):
        assert cache.known_tokens("a", asked) == known
        found = cache.find("a", asked)
        assert len(found) == (LAYERS if known else 0)
        for pair, expected in zip(found, layers_of(asked[:known]), strict=False):
            assert all(torch.equal(x, y) for x, y in zip(pair, expected, strict=True))


def test_adapters_share_nothing():
    cache, tokens = cache_of(10), list(range(40))
    cache.store("a", tokens, layers_of(tokens))
    assert cache.known_tokens("b", tokens) == 0
    cache.store("b", tokens, layers_of(tokens, adapter=0.5))
    assert cache.find("a", tokens)[0][0][0, 0, 3, 0] == 3
    assert cache.find("b", tokens)[0][0][0, 0, 3, 0] == 3.5


def test_what_was_not_used_for_longest_leaves_the_end_of_a_chain_first():
    cache = cache_of(3)
    old, new = list(range(100, 140)), list(range(40))
    cache.store("a", old, layers_of(old))
    cache.store("a", new, layers_of(new))
    assert cache.used_bytes == 3 * BLOCK_BYTES
    assert (cache.known_tokens("a", old), cache.known_tokens("a", new)) == (16, 32)
    cache.find("a", old)
    cache.store("a", [*old[:16], *new], layers_of([*old[:16], *new]))
    assert cache.known_tokens("a", old) == 16


def test_what_is_kept_is_a_copy():
    cache, tokens = cache_of(3), list(range(20))
    layers = [tuple(part.clone() for part in pair) for pair in layers_of(tokens)]
    cache.store("a", tokens, layers)
    layers[0][0].zero_()
    assert cache.find("a", tokens)[0][0][0, 0, 5, 0] == 5


def test_a_cache_without_memory_keeps_nothing():
    cache, tokens = cache_of(0), list(range(40))
    cache.store("a", tokens, layers_of(tokens))
    assert cache.used_bytes == 0 and cache.find("a", tokens) == []


def test_layers_of_different_shapes_are_not_kept():
    wide = torch.zeros(1, HEADS, 1, WIDTH + 1)
    cache = PrefixCache([*layers_of([1]), (wide, wide)], 10 * BLOCK_BYTES)
    assert not cache.is_possible
    cache.store("a", list(range(40)), layers_of(list(range(40))))
    assert cache.used_bytes == 0


def test_layers_without_keys_and_values_are_passed_over():
    tokens = list(range(20))
    cache = PrefixCache([*layers_of([1]), None], 10 * BLOCK_BYTES)
    cache.store("a", tokens, [*layers_of(tokens), None])
    found = cache.find("a", tokens)
    assert found[2] is None and torch.equal(found[1][0], layers_of(tokens[:16])[1][0])
