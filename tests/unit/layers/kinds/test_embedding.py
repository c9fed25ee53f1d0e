import pytest
import torch
from torch import nn

from lorakit.layers import LoraEmbedding, LowRankUpdate
from tiny_models import assert_untouched, snapshot
from tolerances import largest_error

IDS = torch.tensor([[0, 3, 3], [9, 1, 0]])


def layer_with(r=2, padding_idx=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    layer = nn.Embedding(10, 6, padding_idx=padding_idx, dtype=dtype, **options)
    before = snapshot(layer)
    adapted = LoraEmbedding.adapt_in_place(layer)
    adapted.updates["a"] = LowRankUpdate(torch.randn(r, 10), torch.randn(6, r), 0.5)
    adapted.activate(("a",))
    return adapted, before


def test_swap_and_restore_leave_no_trace():
    layer, before = layer_with()
    layer.restore_in_place()
    assert type(layer) is nn.Embedding
    assert_untouched(layer, before)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_forward_adds_the_rows_of_the_update(shape):
    layer, _ = layer_with()
    ids = torch.randint(0, 10, shape)
    table = layer.weight + layer.updates["a"].delta_weight().T
    assert largest_error(layer(ids), nn.functional.embedding(ids, table)) < 1e-5


def test_gradients_are_those_of_the_table():
    layer, _ = layer_with()
    layer.weight.requires_grad_(False)
    layer(IDS).pow(2).sum().backward()
    got = [p.grad.clone() for p in (layer.updates["a"].lora_A, layer.updates["a"].lora_B)]
    A, B = (p.detach().requires_grad_() for p in layer.updates["a"].parameters())
    nn.functional.embedding(IDS, layer.weight + 0.5 * (B @ A).T).pow(2).sum().backward()
    assert largest_error(got[0], A.grad) < 1e-5
    assert largest_error(got[1], B.grad) < 1e-5
    assert layer.weight.grad is None


def test_the_padding_row_learns_nothing():
    layer, _ = layer_with(padding_idx=0)
    layer(IDS).sum().backward()
    gradient = layer.updates["a"].lora_A.grad
    assert gradient[:, 0].eq(0).all() and gradient[:, 3].ne(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_factors_under_a_half_precision_table(dtype):
    layer, _ = layer_with(dtype=dtype)
    assert layer(IDS).dtype == dtype
    layer(IDS).float().sum().backward()
    assert layer.updates["a"].lora_A.grad.dtype == torch.float32


def test_autocast_leaves_the_embedding_s_dtype():
    layer, _ = layer_with()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(IDS).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merge_and_unmerge(dtype):
    layer, _ = layer_with(dtype=dtype)
    base, expected = layer.weight, layer(IDS)
    exact = base.detach().float() + layer.updates["a"].delta_weight().T
    layer.merge()
    assert torch.equal(layer.weight, exact.to(dtype))
    assert largest_error(layer(IDS), expected) < (1e-5 if dtype == torch.float32 else 2e-2)
    layer.unmerge()
    assert layer.weight is base


def test_merging_leaves_a_tied_head_alone():
    layer, _ = layer_with()
    head = nn.Linear(6, 10, bias=False)
    head.weight = layer.weight
    bits = head.weight.detach().clone()
    layer.merge()
    assert head.weight is not layer.weight
    assert torch.equal(head.weight, bits)
    layer.unmerge()
    assert head.weight is layer.weight
