"""Quantized weights: what they stand for, where it is written, and the nodes that run on them."""

import threading

import bitsandbytes  # noqa: F401 - its operators are called by name
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from lorakit.errors import DtypeError
from lorakit.ops import LinearOperands, LowRankTerm, low_rank_linear, low_rank_linears, low_rank_mlp
from lorakit.ops import quantized as ops
from lorakit.ops.grouped import PerRowTerms, low_rank_linear_per_row
from tiny_models.quantized import eight_bit_weight, four_bit_weight
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

KINDS = ("nf4, double", "nf4", "fp4, double", "fp4", "int8")


def weight_of(kind, out=64, inside=96, seed=0, compute_dtype=torch.float32):
    dense = torch.randn(out, inside, generator=torch.Generator().manual_seed(seed)) * 0.1
    if kind == "int8":
        return eight_bit_weight(dense, compute_dtype)
    return four_bit_weight(dense, kind[:3], "double" in kind, compute_dtype)


def term(out=64, inside=96, r=4, seed=3, p=0.0, mask=None):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, inside, generator=generator) * 0.1
    B = torch.randn(out, r, generator=generator) * 0.1
    return LowRankTerm(A.requires_grad_(), B.requires_grad_(), 0.5, p, mask)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dense_is_what_bitsandbytes_makes_of_it(kind, dtype):
    weight, expected = weight_of(kind)
    got = ops.dense(weight, dtype)
    assert got.dtype == dtype and tuple(got.shape) == weight.shape == (64, 96)
    assert largest_error(got, expected) <= TOLERANCE[dtype]


def test_dense_without_the_compiled_functions_is_the_same(kind, monkeypatch):
    weight, _ = weight_of(kind)
    expected = ops.dense_copy(weight, torch.float32)
    monkeypatch.setattr(ops, "_is_plain_cpu", lambda tensor: False)
    got = ops.dense(weight, torch.float32)
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]


def test_a_weight_in_another_storage_dtype_reads_the_same():
    weight, expected = weight_of("nf4")
    stored = weight._replace(codes=weight.codes.view(-1, 2).view(torch.bfloat16))
    assert torch.equal(ops.dense(stored, torch.float32), expected)


def test_float64_and_odd_widths_go_through_bitsandbytes_operators():
    weight, expected = four_bit_weight(torch.randn(64, 33))
    assert torch.equal(ops.dense(weight, torch.float64), expected.double())


def test_all_layers_write_into_one_buffer_and_a_copy_is_its_own(kind):
    first, expected = weight_of(kind, inside=128)
    second, _ = weight_of(kind, inside=128, seed=1)
    kept = ops.dense_copy(first, torch.float32)
    one = ops.dense(first, torch.float32)
    two = ops.dense(second, torch.float32)
    assert one.data_ptr() == two.data_ptr() != kept.data_ptr()
    assert largest_error(kept, expected) <= TOLERANCE[torch.float32]


def test_each_thread_has_a_buffer_of_its_own():
    weight, _ = weight_of("nf4")
    ours, others = ops.dense(weight, torch.float32), []
    thread = threading.Thread(target=lambda: others.append(ops.dense(weight, torch.float32)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() != ours.data_ptr()


def test_a_buffer_made_in_inference_mode_serves_training(kind):
    ops._scratch._buffers.clear()
    weight, _ = weight_of(kind)
    with torch.inference_mode():
        ops.dense(weight, torch.float32)
    x = torch.randn(3, 96, requires_grad=True)
    low_rank_linear(x, weight, None, [term()]).sum().backward()
    assert x.grad is not None


def test_parts_can_be_put_together_again(kind):
    weight, expected = weight_of(kind)
    layout, tensors = ops.parts(weight)
    assert len(tensors) == ops.tensor_count(layout)
    again = ops.weight_from(layout, iter(tensors))
    assert largest_error(ops.dense(again, torch.float32), expected) <= 5e-7
    assert ops.parts(expected) == (None, (expected,)) and ops.tensor_count(None) == 1


def test_fake_tensors_are_made_dense_without_memory():
    weight, _ = weight_of("nf4, double")
    with FakeTensorMode() as mode:
        fake = weight._replace(
            **{
                name: mode.from_tensor(tensor)
                for name, tensor in weight._asdict().items()
                if isinstance(tensor, torch.Tensor)
            }
        )
        assert ops.dense(fake, torch.float32).shape == (64, 96)


# ---- the nodes ----


def gradients_of(run, leaves):
    for leaf in leaves:
        leaf.grad = None
    output = run()
    output.square().sum().backward()
    return output, [leaf.grad.clone() for leaf in leaves]


def assert_same(run_quantized, run_dense, leaves):
    got, got_gradients = gradients_of(run_quantized, leaves)
    expected, gradients = gradients_of(run_dense, leaves)
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]
    for one, other in zip(got_gradients, gradients, strict=True):
        assert largest_error(one, other) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("tokens", [3, 700], ids=["few tokens", "many tokens: W0 + sBA first"])
def test_a_linear_equals_the_one_on_the_dense_weight(kind, tokens):
    weight, dense = weight_of(kind)
    ours, bias = term(), torch.randn(64, requires_grad=True)
    x = torch.randn(tokens, 96, requires_grad=True)
    leaves = [x, ours.A, ours.B, bias]
    assert_same(
        lambda: low_rank_linear(x, weight, bias, [ours]),
        lambda: low_rank_linear(x, dense, bias, [ours]),
        leaves,
    )
    with torch.no_grad():
        got = low_rank_linear(x, weight, bias, [ours])
        expected = low_rank_linear(x, dense, bias, [ours])
    assert largest_error(got, expected) <= TOLERANCE[torch.float32]


def test_neighbours_with_dropout_equal_those_on_dense_weights(kind):
    weights = [weight_of(kind, seed=seed) for seed in (1, 2)]
    seed = torch.tensor(5)
    terms = [term(seed=s, p=0.25, mask=seed) for s in (1, 2)]
    x = torch.randn(5, 96, requires_grad=True)

    def run(which):
        layers = [
            LinearOperands(weight[which], None, [t])
            for weight, t in zip(weights, terms, strict=True)
        ]
        return torch.cat(low_rank_linears(x, layers), 1)

    leaves = [x, *(factor for t in terms for factor in (t.A, t.B))]
    assert_same(lambda: run(0), lambda: run(1), leaves)


def test_an_mlp_equals_the_one_on_dense_weights(kind):
    gate, up = weight_of(kind, seed=1), weight_of(kind, seed=2)
    down = weight_of(kind, out=96, inside=64, seed=3)
    terms = [term(seed=1), term(seed=2), term(out=96, inside=64, seed=3)]
    x = torch.randn(5, 96, requires_grad=True)

    def run(which):
        layers = [
            LinearOperands(weight[which], None, [t])
            for weight, t in zip((gate, up, down), terms, strict=True)
        ]
        return low_rank_mlp(x, layers[:2], layers[2], "silu")

    leaves = [x, *(factor for t in terms for factor in (t.A, t.B))]
    assert_same(lambda: run(0), lambda: run(1), leaves)


def test_mixed_rows_equal_those_on_a_dense_weight(kind):
    weight, dense = weight_of(kind)
    terms = [term(seed=1), term(seed=2, r=2)]
    x = torch.randn(3, 4, 96, requires_grad=True)
    leaves = [x, *(factor for t in terms for factor in (t.A, t.B))]
    assert_same(
        lambda: low_rank_linear_per_row(x, weight, None, PerRowTerms(terms, [0, -1, 1])),
        lambda: low_rank_linear_per_row(x, dense, None, PerRowTerms(terms, [0, -1, 1])),
        leaves,
    )


def test_nothing_dense_is_saved_for_backward(kind):
    weight, _ = weight_of(kind)
    ours, x, saved = term(), torch.randn(3, 96, requires_grad=True), []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linear(x, weight, None, [ours])
    assert saved and not any(t.is_floating_point() and t.numel() >= 64 * 96 for t in saved)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16], ids=str)
def test_products_run_in_the_compute_dtype_and_outputs_have_that_of_the_input(kind, compute):
    weight, dense = weight_of(kind, compute_dtype=compute)
    ours, x = term(), torch.randn(3, 96, requires_grad=True)
    output = low_rank_linear(x, weight, None, [ours])
    expected = low_rank_linear(x, dense, None, [ours])
    assert output.dtype == torch.float32
    assert 0 < largest_error(output, expected) <= 2 * TOLERANCE[compute]
    output.sum().backward()
    assert x.grad.dtype == torch.float32 and ours.A.grad.dtype == torch.float32
    rows = low_rank_linear_per_row(x[:, None], weight, None, PerRowTerms([ours], [0, 0, 0]))
    assert rows.dtype == torch.float32
    assert largest_error(rows[:, 0], expected) <= 2 * TOLERANCE[compute]


def test_without_a_compute_dtype_the_input_s_holds(kind):
    weight, _ = weight_of(kind, compute_dtype=None)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert low_rank_linear(torch.randn(2, 96, dtype=dtype), weight, None, []).dtype == dtype


def test_under_autocast_products_run_in_its_dtype(kind):
    weight, _ = weight_of(kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert low_rank_linear(torch.randn(2, 96), weight, None, [term()]).dtype == torch.bfloat16


def test_a_dense_weight_of_another_dtype_is_still_refused():
    weight, dense = weight_of("nf4")
    layers = [LinearOperands(weight, None, [term()]), LinearOperands(dense, None, [term()])]
    with pytest.raises(DtypeError, match=r"input of an adapted layer is torch\.bfloat16"):
        low_rank_linears(torch.randn(2, 96, dtype=torch.bfloat16), layers)
