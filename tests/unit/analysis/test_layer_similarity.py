"""φ between the modules of one adapter."""

import pytest
import torch

from lorakit.analysis import layer_similarities, similarity, update_svds
from tiny_models.adapters import adapter_of, layered_adapter, random_factors


def test_every_pair_has_the_phi_of_its_top_directions():
    adapter = layered_adapter(
        layers=2, kinds=("q_proj", "k_proj", "v_proj"), r=6, rank_pattern={"v_proj": 6}
    )
    updates = update_svds(adapter)
    (found,) = layer_similarities(updates)
    assert found.paths == tuple(adapter.factors) and found.directions == (4,) * 6
    for row, one in enumerate(updates):
        for column, other in enumerate(updates):
            expected = similarity(one.right[:4].T, other.right[:4].T)[-1, -1]
            torch.testing.assert_close(found.phi[row, column], expected)


def test_modules_of_lower_rank_are_compared_by_what_they_have():
    factors = {"a": random_factors(2, 12, 5), "b": random_factors(6, 12, 7, seed=1)}
    updates = update_svds(adapter_of(factors, rank_pattern={"b": 6}))
    (found,) = layer_similarities(updates)
    assert found.directions == (2, 4)
    expected = similarity(updates[0].right[:2].T, updates[1].right[:4].T)[-1, -1]
    torch.testing.assert_close(found.phi[0, 1], expected)
    assert (found.mean, found.closest()) == (
        pytest.approx(expected.item()),
        ("a", "b", pytest.approx(expected.item())),
    )


def test_it_is_symmetric_with_ones_on_the_diagonal_beside_a_control():
    (found,) = layer_similarities(update_svds(layered_adapter(layers=4, width=40)))
    for matrix in (found.phi, found.random):
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(8, dtype=torch.float64))
        assert matrix.min() >= 0 and matrix.max() <= 1
    # Random factors are random directions: both are near 4 / 40.
    assert found.mean == pytest.approx(0.1, abs=0.03)
    assert found.random_mean == pytest.approx(0.1, abs=0.03)


def test_modules_that_read_the_same_are_found():
    A, B = random_factors(4, 30, 10)
    factors = {f"layers.{n}.up": random_factors(4, 30, 10, seed=n + 1) for n in range(4)}
    factors |= {"layers.7.up": (A, B), "layers.9.up": (A, 2 * B)}
    found = layer_similarities(update_svds(adapter_of(factors)))[0]
    one, other, phi = found.closest()
    assert (one, other) == ("layers.7.up", "layers.9.up") and phi == pytest.approx(1)


def test_widths_are_kept_apart_and_lone_ones_left_out():
    factors = {
        "layers.0.down": random_factors(2, 20, 10),
        "layers.1.down": random_factors(2, 20, 10, seed=1),
        "layers.0.up": random_factors(2, 10, 20),
        "layers.1.up": random_factors(2, 10, 20, seed=1),
        "layers.2.up": random_factors(2, 10, 20, seed=2),
        "head": random_factors(2, 17, 10),
        "zero": (random_factors(2, 20, 10)[0], torch.zeros(10, 2)),
        "tokens": random_factors(2, 20, 10),
    }
    found = layer_similarities(update_svds(adapter_of(factors, embeddings=["tokens"])))
    assert [(one.in_features, len(one.paths)) for one in found] == [(10, 3), (20, 2)]
