import pytest
import torch

from lorakit.initialization.streamed_components import StreamedComponents
from tolerances import largest_error


def rows(count=90, width=24):
    """Rows whose mean moves from batch to batch, with a spectrum that falls."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(width, 0, -1).float().square()
    drift = torch.linspace(0, 50, count)[:, None] * torch.ones(width)
    return torch.randn(count, width, generator=generator) * spread + drift


def expected(x, k):
    centred = (x - x.mean(0)).double()
    _, values, right = torch.linalg.svd(centred, full_matrices=False)
    return right[:k], values[:k] ** 2 / (values**2).sum()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("sizes", [(90,), (1, 40, 9, 40), (30, 0, 60)])
def test_batches_give_what_all_rows_at_once_would(exact, sizes):
    x = rows()
    sums = StreamedComponents(3, exact)
    assert sums.is_empty
    for part in x.split(list(sizes)):
        sums.add(part)
    directions, shares = sums.result()
    right, ratios = expected(x, 3)
    # Ten components are kept of the wide form here, so what it forgets is small.
    assert largest_error((directions.double() @ right.T).abs(), torch.eye(3).double()) < (
        1e-6 if exact else 1e-3
    )
    assert largest_error(shares, ratios) < (1e-6 if exact else 1e-3)


def test_wide_rows_keep_a_few_directions_only(monkeypatch):
    monkeypatch.setattr("lorakit.initialization.streamed_components.EXACT_WIDTH", 8)
    sums = StreamedComponents(1)
    sums.add(rows())
    assert sums._gram is None and sums._kept.shape == (18, 24)


def test_equal_rows_have_no_variance_to_explain():
    for exact in (True, False):
        sums = StreamedComponents(2, exact)
        sums.add(torch.ones(5, 4))
        directions, shares = sums.result()
        assert directions.shape[1] == 4 and shares.abs().max() < 1e-6


def test_no_rows_have_no_components():
    with pytest.raises(ValueError, match="no components of no vectors"):
        StreamedComponents(2).result()
