"""The amplification factor and its controls, against dense products and closed forms."""

import pytest
import torch

from lorakit.analysis import amplifications, update_svds
from lorakit.analysis.amplification import amplification, top_norm
from lorakit.errors import AdapterMismatchError
from tiny_models.adapters import adapter_of, factors_with, orthonormal, random_factors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_update(r=3, in_features=20, out_features=14):
    return update_svds(adapter_of({"m": random_factors(r, in_features, out_features)}))[0]


def test_every_norm_is_the_dense_one():
    update = one_update()
    W0 = torch.randn(14, 20)
    found = amplification(update, W0, generator())
    dense = W0.double()
    U, _, Vh = torch.linalg.svd(update.left * update.singular_values @ update.right)
    expected = (U[:, :3].T @ dense @ Vh[:3].T).norm().item()
    assert found.along_update == pytest.approx(expected)
    assert found.base_norm == pytest.approx(dense.norm().item())
    assert found.along_base == pytest.approx(torch.linalg.svdvals(dense)[:3].norm().item())
    assert found.factor == pytest.approx(update.norm / expected)
    assert (found.path, found.directions) == ("m", 3)


def test_a_base_that_is_the_update_is_amplified_once():
    update = one_update()
    delta = update.left * update.singular_values @ update.right
    found = amplification(update, delta, generator())
    assert found.factor == pytest.approx(1)
    assert found.along_base == pytest.approx(found.along_update)
    assert amplification(update, delta / 5, generator()).factor == pytest.approx(5)


def test_a_base_with_nothing_along_the_update_is_amplified_without_end():
    (A, B), left, _ = factors_with([3.0, 1.0], 12, 12)
    update = update_svds(adapter_of({"m": (A, B)}))[0]
    projector = torch.eye(12, dtype=torch.float64) - left @ left.T
    found = amplification(update, projector @ torch.randn(12, 12).double(), generator())
    assert found.factor > 1e10
    assert amplification(update, torch.zeros(12, 12), generator()).factor == float("inf")


def test_only_directions_that_the_update_has_are_counted():
    (A, B), left, right = factors_with([3.0, 1.0], 12, 10)
    A, B = torch.cat([A, A]), torch.cat([B, 0 * B], dim=1)  # r = 4, rank 2
    W0 = torch.randn(10, 12).double()
    found = amplification(update_svds(adapter_of({"m": (A, B)}))[0], W0, generator())
    assert found.directions == 2
    assert found.along_update == pytest.approx((left.T @ W0 @ right.T).norm().item())


def test_random_directions_have_their_share_of_the_base():
    # E‖UᵀWV‖² = r² / (out · in) ‖W‖² for independent random directions.
    update, W0 = one_update(r=4, in_features=30, out_features=24), torch.randn(24, 30)
    source = generator()
    squares = [amplification(update, W0, source).along_random ** 2 for _ in range(300)]
    expected = 4 * 4 / (24 * 30) * W0.norm().item() ** 2
    assert sum(squares) / len(squares) == pytest.approx(expected, rel=0.1)


def test_no_directions_have_more_of_the_base_than_its_own():
    for seed in range(5):
        W0 = torch.randn(14, 20, generator=generator(seed))
        found = amplification(one_update(), W0, generator(seed))
        assert found.along_base > found.along_random
        assert found.along_base > found.along_update
        assert found.base_norm > found.along_base


def test_top_directions_of_a_large_base_are_near_the_exact_ones():
    source = generator()
    U, V = orthonormal(200, 150, source), orthonormal(150, 150, source)
    W0 = U * torch.linspace(3, 0.5, 150, dtype=torch.float64) @ V.T
    exact = torch.linalg.svdvals(W0)[:8].norm().item()
    for matrix in (W0, W0.T):
        assert top_norm(matrix, 8, source) == pytest.approx(exact, rel=1e-9)
        approximate = top_norm(matrix, 8, source, exact_rows=10)
        assert 0.97 * exact < approximate <= exact * (1 + 1e-9)


def test_zero_updates_and_unknown_weights_are_left_out():
    A, B = random_factors(2, 6, 6)
    adapter = adapter_of({"a": (A, B), "b": (A, 0 * B), "c": (A, B)})
    weights = {"a": torch.randn(6, 6), "b": torch.randn(6, 6)}
    assert [found.path for found in amplifications(update_svds(adapter), weights)] == ["a"]


def test_the_seed_decides_the_random_control_alone():
    updates, weights = [one_update()], {"m": torch.randn(14, 20)}
    first, again, other = (amplifications(updates, weights, seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first.along_random != other.along_random
    assert first.factor == other.factor


def test_a_base_of_another_shape_is_refused():
    with pytest.raises(
        AdapterMismatchError, match=r"update of m is \(14, 20\), but the base's weight is \(20, 14"
    ):
        amplification(one_update(), torch.randn(20, 14), generator())
