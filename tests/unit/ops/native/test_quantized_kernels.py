"""Weights in 4 and 8 bits in C: products with their codes, and their values written densely.

Inner sizes are small, as the tolerances are of sums of at most 64 products, or a few times that.
"""

import threading

import pytest
import torch
from bitsandbytes import functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lorakit.ops import LowRankTerm, low_rank_linear
from lorakit.ops import quantized as ops
from lorakit.ops.grouped import PerRowTerms, low_rank_linear_per_row
from lorakit.ops.native import compiled_library, quantized_kernels
from lorakit.ops.quantized import Layout, QuantizedWeight
from tiny_models.quantized import eight_bit_weight
from tolerances import TOLERANCE, largest_error

KINDS = ("nf4, double", "nf4", "fp4, double", "fp4", "int8")
DTYPES = (torch.float32, torch.bfloat16)


def weight_of(kind, out, inside, block_size=64, nested_block_size=256):
    """Quantize a random weight; return it and its dequantized values by bitsandbytes."""
    dense = torch.randn(out, inside, generator=torch.Generator().manual_seed(0))
    if kind == "int8":
        return eight_bit_weight(dense)
    codes, state = functional.quantize_4bit(dense, quant_type=kind[:3], blocksize=block_size)
    exact = functional.dequantize_4bit(codes, state)
    layout = Layout((out, inside), kind[:3], None, block_size)
    if "double" not in kind:
        return QuantizedWeight(layout, codes, state.absmax), exact
    offset = state.absmax.mean()
    absmax, nested = functional.quantize_blockwise(
        state.absmax - offset, blocksize=nested_block_size
    )
    layout = layout._replace(nested_block_size=nested_block_size)
    weight = QuantizedWeight(layout, codes, absmax, nested.absmax, nested.code, offset)
    return weight, ops.dense_copy(weight, torch.float32)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def compiled():
    """The compiled product, whose calls are counted."""
    if quantized_kernels.load() is None:
        pytest.skip(f"there is no compiled product: {compiled_library.unavailable()}")
    return quantized_kernels.load()


@pytest.fixture
def calls(compiled, monkeypatch):
    """Return the shapes of the products that the C has computed."""
    made, linear = [], quantized_kernels.QuantizedKernels.linear

    def counted(self, x, weight, bias):
        made.append((*x.shape, weight.shape[0]))
        return linear(self, x, weight, bias)

    monkeypatch.setattr(quantized_kernels.QuantizedKernels, "linear", counted)
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out", [1, 5, 64, 131])
@pytest.mark.parametrize("tokens", range(1, 10))
def test_equals_the_product_with_the_dense_weight(kind, tokens, out, dtype, calls):
    weight, exact = weight_of(kind, out, 192)
    x = torch.randn(tokens, 192).to(dtype)
    bias = torch.randn(out).to(dtype)
    got = ops.linear(x, weight, bias)
    assert len(calls) == (tokens <= ops._MOST_TOKENS)
    assert got.dtype == dtype
    assert (
        largest_error(got, F.linear(x.double(), exact.double(), bias.double()))
        <= (TOLERANCE[dtype])
    )


@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_of_blocks(block_size, dtype, calls):
    for kind in KINDS[:4]:
        # The first level has 3 blocks in a row, so those of the second straddle rows.
        weight, exact = weight_of(kind, 7, 3 * block_size, block_size, nested_block_size=64)
        x = torch.randn(2, 3 * block_size).to(dtype)
        expected = F.linear(x.double(), exact.double())
        assert largest_error(ops.linear(x, weight, None), expected) <= TOLERANCE[dtype]
    assert len(calls) == 4


def test_second_level_blocks_that_straddle_rows(calls):
    weight, exact = weight_of("nf4, double", 200, 192)
    assert weight.absmax.numel() == 600 and weight.nested_absmax.numel() == 3
    x = torch.randn(3, 192)
    expected = F.linear(x.double(), exact.double())
    assert largest_error(ops.linear(x, weight, None), expected) <= TOLERANCE[torch.float32]
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(kind, dtype, calls, two_threads):
    weight, _ = weight_of(kind, 333, 128)
    x = torch.randn(3, 128).to(dtype)
    on_two = ops.linear(x, weight, None)
    torch.set_num_threads(1)
    assert torch.equal(on_two, ops.linear(x, weight, None))
    assert len(calls) == 2


def test_two_threads_of_python_do_not_share_anything(kind, calls):
    weight, _ = weight_of(kind, 64, 128)
    xs = [torch.randn(2, 128) for _ in range(4)]
    expected, got = [ops.linear(x, weight, None) for x in xs], [None] * 4

    def run(number):
        got[number] = ops.linear(xs[number], weight, None)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_and_more_dimensions(kind, dtype, calls):
    weight, exact = weight_of(kind, 9, 64)
    wide = torch.randn(2, 3, 100).to(dtype)
    got = ops.linear(wide[..., :64], weight, None)
    assert got.shape == (2, 3, 9) and len(calls) == 1
    assert largest_error(got, F.linear(wide[..., :64].double(), exact.double())) <= TOLERANCE[dtype]


def test_codes_stored_in_another_dtype(calls):
    weight, exact = weight_of("nf4", 8, 64)
    stored = weight._replace(codes=weight.codes.view(-1, 2).view(torch.bfloat16))
    x = torch.randn(2, 64)
    assert largest_error(ops.linear(x, stored, None), x @ exact.t()) <= TOLERANCE[torch.float32]
    assert len(calls) == 1


@pytest.mark.parametrize(("inside", "block_size"), [(96, 64), (80, 64), (33, 64)], ids=str)
def test_rows_of_incomplete_blocks_take_the_dense_weight(inside, block_size, calls):
    for kind in KINDS[:4]:
        weight, exact = weight_of(kind, 12, inside, block_size)
        x = torch.randn(2, inside)
        assert largest_error(ops.linear(x, weight, None), x @ exact.t()) <= TOLERANCE[torch.float32]
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_take_the_dense_weight(kind, dtype, calls):
    weight, exact = weight_of(kind, 12, 64)
    x = torch.randn(2, 64, dtype=dtype)
    got = ops.linear(x, weight, None)
    assert got.dtype == dtype
    assert largest_error(got, x.double() @ exact.double().t()) <= TOLERANCE[torch.float16]
    assert calls == []


def test_no_tokens_and_a_dense_weight(kind, calls):
    weight, exact = weight_of(kind, 12, 64)
    assert ops.linear(torch.empty(0, 64), weight, None).shape == (0, 12)
    x = torch.randn(2, 64)
    assert torch.equal(ops.linear(x, exact, None), F.linear(x, exact))
    assert calls == []


def test_fakes_modes_traces_and_transforms_take_the_dense_weight(kind, calls):
    weight, exact = weight_of(kind, 12, 64)
    x = torch.randn(2, 64)
    with FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(value)
            for name, value in weight._asdict().items()
            if isinstance(value, torch.Tensor)
        }
        got = ops.linear(mode.from_tensor(x), weight._replace(**fakes), None)
        assert got.shape == (2, 12)
    with FlopCounterMode(display=False) as counter:
        ops.linear(x, weight, None)
    assert counter.get_total_flops() == 2 * 2 * 12 * 64
    each = torch.func.vmap(lambda row: ops.linear(row, weight, None))(x)
    assert largest_error(each, x @ exact.t()) <= TOLERANCE[torch.float32]
    assert calls == []


def test_a_compiled_function_takes_the_dense_weight(kind, calls):
    weight, exact = weight_of(kind, 12, 64)
    x = torch.randn(2, 64)
    with torch.no_grad():
        compiled = torch.compile(lambda x: ops.linear(x, weight, None), backend="eager")
        assert largest_error(compiled(x), x @ exact.t()) <= TOLERANCE[torch.float32]
    assert calls == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_the_c_the_product_is_the_same(kind, dtype, monkeypatch):
    weight, exact = weight_of(kind, 12, 64)
    x = torch.randn(2, 64).to(dtype)
    monkeypatch.setattr(quantized_kernels, "load", lambda: None)
    got = ops.linear(x, weight, None)
    assert largest_error(got, x.double() @ exact.double().t()) <= TOLERANCE[dtype]


# ---- the layers' functions ----


def term(out, inside, seed=1):
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(4, inside, generator=generator), torch.randn(out, 4, generator=generator)
    return LowRankTerm(A.requires_grad_(), (0.1 * B).requires_grad_(), 0.5)


def test_a_layer_uses_it_without_gradients_alone(kind, calls):
    weight, _ = weight_of(kind, 12, 64)
    x, ours = torch.randn(2, 1, 64), term(12, 64)
    trained = low_rank_linear(x, weight, None, [ours])
    assert calls == []
    with torch.no_grad():
        got = low_rank_linear(x, weight, None, [ours])
    assert calls == [(2, 64, 12)]
    assert largest_error(got, trained) <= TOLERANCE[torch.float32]
    with torch.inference_mode():
        assert torch.equal(low_rank_linear(x, weight, None, [ours]), got)


def test_rows_of_several_adapters_use_it_without_gradients_alone(kind, calls):
    weight, _ = weight_of(kind, 12, 64)
    x, rows = torch.randn(3, 1, 64), PerRowTerms([term(12, 64), term(12, 64, 2)], [0, -1, 1])
    trained = low_rank_linear_per_row(x, weight, torch.ones(12), rows)
    assert calls == []
    with torch.no_grad():
        got = low_rank_linear_per_row(x, weight, torch.ones(12), rows)
    assert calls == [(3, 64, 12)]
    assert largest_error(got, trained) <= TOLERANCE[torch.float32]


def test_under_autocast_it_runs_in_its_dtype(kind, calls):
    weight, exact = weight_of(kind, 12, 64)
    x, bias = torch.randn(2, 64), torch.randn(12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = low_rank_linear(x, weight, bias, [])
    assert got.dtype == torch.bfloat16 and calls == [(2, 64, 12)]
    assert largest_error(got, x @ exact.t() + bias) <= 2 * TOLERANCE[torch.bfloat16]


# ---- the dense weight ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("out", "blocks"), [(1, 1), (7, 3), (300, 2)], ids=str)
@pytest.mark.parametrize("block_size", [64, 128])
def test_a_weight_is_dequantized_to_the_bits_of_torch_operations(
    kind, dtype, out, blocks, block_size, compiled, two_threads, monkeypatch
):
    weight, _ = weight_of(kind, out, blocks * block_size, block_size)
    written = []
    dequantize = quantized_kernels.QuantizedKernels.dequantize
    monkeypatch.setattr(
        quantized_kernels.QuantizedKernels,
        "dequantize",
        lambda self, *args: written.append(dequantize(self, *args)),
    )
    got = ops.dense_copy(weight, dtype)
    assert len(written) == 1
    monkeypatch.setattr(quantized_kernels, "load", lambda: None)
    assert torch.equal(got, ops.dense(weight, dtype))
    assert len(written) == 1


def test_a_weight_that_is_zero_or_tiny_is_dequantized_to_the_same_bits(compiled, monkeypatch):
    dense = torch.zeros(4, 64)
    dense[1], dense[2, 3] = 1e-30, 1e-9
    codes, state = functional.quantize_4bit(dense, quant_type="nf4", blocksize=64)
    weight = QuantizedWeight(Layout((4, 64), "nf4", None, 64), codes, state.absmax)
    got = ops.dense_copy(weight, torch.float32)
    monkeypatch.setattr(quantized_kernels, "load", lambda: None)
    assert torch.equal(got, ops.dense(weight, torch.float32))
