"""Weights stored in 4 or 8 bits, and dequantized for one product at a time.

The storage is bitsandbytes'. A 4-bit weight is cut into blocks of consecutive values; each block
has its largest absolute value, absmax, and a code of 4 bits for each value:

    w = code_book[code] * absmax[block]

With double quantization absmax is stored in 8 bits, in blocks again: absmax = mean + code *
second-level absmax. An 8-bit weight has one scale for each row: w = code * absmax[row] / 127.

A dense weight is needed twice in a training step, once in forward and once in backward. On a CPU
the C of native/dequantize.c writes it into one buffer that all layers use in turn, which avoids
allocations; a result of `dense` is therefore valid until the next call in the same thread.

For the few tokens of a decoding step even that buffer costs several times what the product does.
`linear` then multiplies with the codes as they lie, on a CPU with the C of native/quantized.c.

Without a compiler, and for weights that the C does not read, bitsandbytes' own functions do both.
"""

# torch has no public names for traces and modes, and its types say that there is always a trace.
# pyright: reportPrivateUsage=false, reportUnnecessaryComparison=false

import threading
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.ops.native import cpu_kernels, quantized_kernels
from lorakit.ops.weight_products import forward_product

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""dtypes that bitsandbytes dequantizes into."""
_MOST_TOKENS = 8
"""Largest number of tokens at which the product with the codes is faster. With more the C decodes
a weight more than once. Measured by `python -m benchmarks.decode_4bit`, see docs/performance.md."""
_PLAIN_TYPES = ("Tensor", "Parameter", "Params4bit", "Int8Params", "FakeTensor")


class Layout(NamedTuple):
    """The constants of a quantized weight."""

    shape: tuple[int, int]
    """(out, in) of the dense weight."""
    quant_type: str
    """"nf4" or "fp4" in 4 bits, "int8" in 8."""
    compute_dtype: torch.dtype | None
    """dtype of products with it; None for the dtype of the input."""
    block_size: int = 0
    """Values that share a scale; 0 if a row does."""
    nested_block_size: int = 0
    """Scales that share a second-level scale; 0 if absmax is float32."""


class QuantizedWeight(NamedTuple):
    """A weight in 4 or 8 bits."""

    layout: Layout
    codes: Tensor
    """(out, in), int8; or two codes of 4 bits in each byte, any dtype as storage."""
    absmax: Tensor
    """(blocks,) or (out,) in float32, or (blocks,) in uint8 if it is quantized too."""
    nested_absmax: Tensor | None = None
    nested_code: Tensor | None = None
    """The 256 values of the second level."""
    offset: Tensor | None = None
    """Mean of absmax, 0-dimensional."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the dense weight."""
        return self.layout.shape

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of products with it; None for the dtype of the input."""
        return self.layout.compute_dtype

    @property
    def device(self) -> torch.device:
        """Device of its storage."""
        return self.codes.device


Weight = Tensor | QuantizedWeight


def parts(weight: Weight) -> tuple[Layout | None, tuple[Tensor | None, ...]]:
    """Return the layout of a weight, None for a dense one, and its tensors."""
    return (None, (weight,)) if isinstance(weight, Tensor) else (weight.layout, weight[1:])


def tensor_count(layout: Layout | None) -> int:
    """Return the number of tensors that `parts` returns for a weight of this layout."""
    return 1 if layout is None else len(QuantizedWeight._fields) - 1


def weight_from(layout: Layout | None, tensors: Iterator[Any]) -> Any:
    """Undo `parts`, consuming as many tensors as the weight has."""
    if layout is None:
        return next(tensors)
    return QuantizedWeight(layout, *islice(tensors, tensor_count(layout)))


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return a weight as an ordinary tensor, (out, in).

    Args:
        weight: Dense or quantized.
        dtype: dtype of the result.

    Returns: A dense weight itself if it has the dtype; for a quantized one on a CPU, a buffer that
        the next call in this thread overwrites.
    """
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    made_dtype = dtype if dtype in _DTYPES else torch.float32
    kernels = _kernels_for(weight) if made_dtype in cpu_kernels.LARGE_DTYPES else None
    if kernels is None:
        make = _dense_8bit if weight.layout.quant_type == "int8" else _dense_4bit
        return make(weight, made_dtype).to(dtype)
    out = _scratch.take(weight.layout.shape, made_dtype, weight.codes)
    if not isinstance(out, FakeTensor):
        kernels.dequantize(_to_stored(weight), out)
    return out.to(dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b where no gradient is needed.

    Args:
        x: (*, in).
        weight: Dense or quantized, (out, in).
        bias: (out,), dtype of x; or None.

    Returns: (*, out), dtype of x.
    """
    kernels = _product_for(x, weight, bias) if isinstance(weight, QuantizedWeight) else None
    if kernels is None or not isinstance(weight, QuantizedWeight):
        return forward_product(x, dense(weight, x.dtype), bias)
    y = kernels.linear(x.reshape(-1, x.shape[-1]), _to_stored(weight), bias)
    return y.view(*x.shape[:-1], y.shape[-1])


def _kernels_for(weight: QuantizedWeight) -> quantized_kernels.QuantizedKernels | None:
    """Return the compiled functions if they can read a weight, or None."""
    columns = weight.layout.shape[1]
    block_size = weight.layout.block_size or columns
    fits = columns % block_size == 0 and block_size % quantized_kernels.WIDEST_GROUP == 0
    scales = torch.uint8 if weight.nested_absmax is not None else torch.float32
    readable = (
        fits
        and weight.absmax.dtype == scales
        and all(_is_plain_cpu(t) for t in weight[1:] if t is not None)
        and all(t.dtype == torch.float32 for t in weight[3:] if t is not None)
    )
    return quantized_kernels.load() if readable else None


def _product_for(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None
) -> quantized_kernels.QuantizedKernels | None:
    """Return the compiled product if it can read these operands and is the faster, or None."""
    columns = weight.layout.shape[1]
    if x.shape[-1] != columns or not 0 < x.numel() <= _MOST_TOKENS * columns:
        return None
    readable = (
        not torch.compiler.is_compiling()
        and cpu_kernels.takes(x)
        and (bias is None or (bias.dtype == x.dtype and _is_plain_cpu(bias)))
        and not any(isinstance(t, FakeTensor) for t in (x, bias, *weight[1:]))
        and torch._C._len_torch_dispatch_stack() == 0  # such a mode would miss what the C does
        and torch._C._functorch.peek_interpreter_stack() is None  # type: ignore[attr-defined]  # torch's private name
    )
    return _kernels_for(weight) if readable else None


def _to_stored(weight: QuantizedWeight) -> quantized_kernels.Stored:
    """Return a weight as the compiled functions take it."""
    layout, codes, absmax, nested_absmax, nested_code, offset = weight
    is_8bit = layout.quant_type == "int8"
    return quantized_kernels.Stored(
        codes,
        absmax,
        None if is_8bit else _code_book(layout.quant_type),
        nested_absmax,
        nested_code,
        offset,
        layout.shape,
        layout.shape[1] if is_8bit else layout.block_size,
        layout.nested_block_size,
    )


@cache
def _code_book(quant_type: str) -> Tensor:
    """Return what bitsandbytes makes of the 16 codes, in float32."""
    pairs = torch.arange(0, 16, 2, dtype=torch.uint8)
    one = torch.ones(1, dtype=torch.float32)
    codes = (pairs * 16 + pairs + 1).view(-1, 1)
    return torch.ops.bitsandbytes.dequantize_4bit(
        codes, one, 64, quant_type, (1, 16), torch.float32
    ).reshape(16)


def dense_copy(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return a quantized weight as a new dense tensor, (out, in)."""
    return dense(weight, dtype).clone()


def _dense_4bit(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    layout = weight.layout
    codes = weight.codes if weight.codes.dtype == torch.uint8 else weight.codes.view(torch.uint8)
    return torch.ops.bitsandbytes.dequantize_4bit(
        codes, _absmax(weight), layout.block_size, layout.quant_type, layout.shape, dtype
    )


def _absmax(weight: QuantizedWeight) -> Tensor:
    """Return the largest absolute value of each block, in float32."""
    if weight.nested_absmax is None or weight.nested_code is None or weight.offset is None:
        return weight.absmax.float()
    exact = torch.ops.bitsandbytes.dequantize_blockwise(
        weight.absmax,
        weight.nested_absmax,
        weight.nested_code,
        weight.layout.nested_block_size,
        torch.float32,
    )
    return exact + weight.offset


def _dense_8bit(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    scales = weight.absmax.to(torch.float32).mul(1 / 127)[:, None]
    return (weight.codes * scales).to(dtype)


def _is_plain_cpu(tensor: Tensor) -> bool:
    """Whether a kernel can read the memory of a tensor.

    A fake tensor counts as the tensor it represents; nothing is computed for it.
    """
    return (
        not torch.compiler.is_compiling()
        and tensor.device.type == "cpu"
        and type(tensor).__name__ in _PLAIN_TYPES
        and tensor.is_contiguous()
        and not cpu_kernels.is_recorded()  # a trace would keep the buffer
    )


class _Scratch(threading.local):
    """Reused buffers, one for each dtype, as large as the largest use."""

    _is_of_fakes = False

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._fake: WeakKeyDictionary[Any, _Scratch] = WeakKeyDictionary()

    def take(self, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
        """Return an uninitialized CPU tensor; a fake one for fakes of the same mode."""
        if isinstance(like, FakeTensor) and not self._is_of_fakes:
            scratch = self._fake.setdefault(like.fake_mode, _Scratch())
            scratch._is_of_fakes = True
            return scratch.take(shape, dtype, like)
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(dtype)
        if buffer is None or buffer.numel() < count:
            # A tensor created in inference mode could not be used outside it.
            with torch.inference_mode(False):
                buffer = torch.empty(count, dtype=dtype, device="cpu")
            self._buffers[dtype] = buffer
        return buffer[:count].view(*shape)


_scratch = _Scratch()


def release_buffers() -> None:
    """Free this thread's buffers; the next product allocates one as large as it needs."""
    _scratch._buffers.clear()


def shared_buffers(like: Tensor) -> list[Tensor]:
    """Return the buffers of dequantized weights; the fake ones for a fake tensor."""
    if not isinstance(like, FakeTensor):
        return [*_scratch._buffers.values()]
    of_mode = _scratch._fake.get(like.fake_mode)
    return [] if of_mode is None else [*of_mode._buffers.values()]
