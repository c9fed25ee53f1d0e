"""φ: its definition, its bounds, and what random directions give."""

import pytest
import torch

from lorakit.analysis.subspace import (
    expected_similarity,
    factor_directions,
    random_directions,
    random_similarity,
    similarity,
)
from lorakit.errors import ShapeError


def random_basis(n, count, seed=0):
    return random_directions(n, count, torch.Generator().manual_seed(seed))


def test_every_entry_is_the_definition():
    X, Y = random_basis(12, 3), random_basis(12, 5, seed=1)
    phi = similarity(X, Y)
    assert phi.shape == (3, 5)
    for i in range(1, 4):
        for j in range(1, 6):
            expected = (X[:, :i].T @ Y[:, :j]).norm() ** 2 / min(i, j)
            torch.testing.assert_close(phi[i - 1, j - 1], expected)


def test_it_is_the_mean_squared_cosine_of_the_principal_angles():
    X, Y = random_basis(10, 4), random_basis(10, 6, seed=1)
    cosines = torch.linalg.svdvals(X.T @ Y)
    torch.testing.assert_close(similarity(X, Y)[-1, -1], cosines.square().mean())


def test_a_subspace_is_contained_in_itself_and_in_a_larger_one():
    X = random_basis(20, 6)
    phi = similarity(X, X)
    torch.testing.assert_close(phi, torch.ones(6, 6, dtype=torch.float64))
    torch.testing.assert_close(similarity(X[:, :2], X)[-1, -1].item(), 1.0)


def test_the_basis_of_a_subspace_does_not_matter():
    X, Y = random_basis(16, 4), random_basis(16, 4, seed=1)
    turned = X @ random_basis(4, 4, seed=2)
    torch.testing.assert_close(similarity(turned, Y)[-1, -1], similarity(X, Y)[-1, -1])


def test_orthogonal_subspaces_have_nothing_in_common():
    both = random_basis(20, 10)
    assert similarity(both[:, :4], both[:, 4:]).max() < 1e-12


def test_it_is_symmetric_and_within_0_and_1():
    X, Y = random_basis(8, 5), random_basis(8, 7, seed=1)
    phi = similarity(X, Y)
    torch.testing.assert_close(phi, similarity(Y, X).T)
    assert phi.min() >= 0 and phi.max() <= 1
    # 5 + 7 > 8, so at least 4 dimensions must be shared of 5.
    assert phi[-1, -1] >= 4 / 5


@pytest.mark.parametrize("other", [(9, 2), (8,), (2, 8)])
def test_directions_of_other_spaces_are_refused(other):
    with pytest.raises(ShapeError, match=r"Cannot compare directions of shapes \(8, 2\) and"):
        similarity(random_basis(8, 2), torch.zeros(other))


def test_random_directions_are_near_what_is_expected():
    n, r1, r2, draws = 40, 3, 8, 400
    generator = torch.Generator().manual_seed(0)
    mean = sum(random_similarity(n, r1, r2, generator) for _ in range(draws)) / draws
    expected = expected_similarity(n, r1, r2)
    assert expected[0, 0] == 1 / n and expected[2, 7] == 8 / n and expected[2, 0] == 3 / n
    # A single squared product has mean 1/n and deviation √2/n: 400 draws leave 0.07/n.
    assert (mean - expected).abs().max() < 5 * 0.07 / n


def test_random_directions_are_orthonormal_and_seeded():
    X = random_basis(30, 7)
    torch.testing.assert_close(X.T @ X, torch.eye(7, dtype=torch.float64))
    assert torch.equal(X, random_basis(30, 7)) and not torch.equal(X, random_basis(30, 7, seed=1))


def test_a_factor_alone_spans_what_the_update_reads():
    A = torch.randn(4, 20)
    directions = factor_directions(A)
    assert directions.shape == (20, 4)
    torch.testing.assert_close(directions @ directions.T @ A.double().T, A.double().T)
    first = directions[:, 0]
    assert (A.double() @ first).norm().item() == pytest.approx(
        torch.linalg.svdvals(A.double())[0].item()
    )
