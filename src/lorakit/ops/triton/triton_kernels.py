"""The products of `skinny.py` that drop, in Triton: on a GPU they read each activation once.

Without dropout a kernel could not beat torch's products: a thin product is one pass over the
activation there too, and the input of `up_` and `up_backward` is never dropped. With dropout torch
would compute the mask (8 bytes of hash for every 4 elements, several
passes), write a dropped copy of x and read it again. So three products are written here, which
hash on the fly between the load and the tensor cores:

    down             u = drop(x) Aᵀ                            reads x
    down_backward_   dL/dA = (dL/du)ᵀ drop(x) and
                     dL/dx += drop'(dL/du A)                   reads x, reads and writes dL/dx
    drop             drop(x)                                   reads x, writes it

`down_backward_` hashes once for both of its results. Hashing dominates the arithmetic: if a
row has a whole number of hash words, four neighbouring elements share one; otherwise each element
is hashed separately.

Products read the factors in the activation's dtype and accumulate in float32, float32 ones without
TF32; 1 / keep probability scales the sums, not the elements, so 16-bit elements are not rounded
again. Sums over many blocks are split among programs by the shapes only and added in a fixed order,
without atomics: results repeat bit for bit. Each element of dL/dx belongs to one program.

Not yet run on a GPU: without one the tests run this code in Triton's interpreter and compile it for
two GPUs. `gpu_kernels.py` compares one product with torch's before any is used.
"""

# Triton's language has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingParameterType=false, reportUnknownParameterType=false, reportMissingTypeStubs=false, reportPrivateUsage=false

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# Annotations that fix an argument's type, which Triton would infer from its value otherwise.
if TYPE_CHECKING:
    Word = int
else:
    Word = tl.uint64

# Constants of the SplitMix64 generator (Steele, Lea and Flood 2014, OOPSLA, figure 16).
_WEYL_STEP = tl.constexpr(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = tl.constexpr(0x94D049BB133111EB)

_ROWS = 32
"""Tokens per tile."""
_LEAST_RANK = 16
"""The tensor cores' smallest side: thinner factors are padded with zeros in registers."""
_WARPS = 8
"""Warps of 32 threads that share a tile's registers."""
_PROGRAMS = 512
"""Programs that a launch aims at when it splits sums: a few per processor of a large GPU."""
_FLAT = 2048
"""Elements per program of `drop`."""


class _Tile(NamedTuple):
    columns: int
    """Columns of the activation in a tile of _ROWS rows."""
    largest_rank: int
    """Largest rank; factors of more rows are processed in pieces."""


_TILES = {
    torch.float32: _Tile(32, 32),
    torch.bfloat16: _Tile(128, 64),
    torch.float16: _Tile(128, 64),
}
"""The largest tile whose operands and sums fit into registers; float32 products keep more of both
there, as they do not use the tensor cores."""


class Mask(Protocol):
    """A dropout mask for kernels; `dropout_mask.kernel_mask` creates it."""

    threshold: int
    """Signed 16-bit lanes below it are dropped."""
    scale: float
    """1 / keep probability."""
    seed: int
    """Unsigned, 64 bits."""


# Arguments that vary between calls: nothing is recompiled for a 1 or a multiple of 16.
_VARYING = ["tokens", "elements", "seed", "threshold", "scale", "blocks_each"]


@triton.jit
def _hash(z):
    """Return the SplitMix64 words of seed + index, given as uint64; products wrap around."""
    z = z * _WEYL_STEP
    z = (z ^ (z >> 30)) * _FIRST_MULTIPLIER
    z = (z ^ (z >> 27)) * _SECOND_MULTIPLIER
    return z ^ (z >> 31)


@triton.jit
def _lanes_of_words(words):
    """Split (m, n) words into (m, 4 n) signed 16-bit lanes, lowest first."""
    low = tl.join(words.to(tl.int16), (words >> 32).to(tl.int16))
    high = tl.join((words >> 16).to(tl.int16), (words >> 48).to(tl.int16))
    return tl.join(low, high).reshape(words.shape[0], 4 * words.shape[1])


@triton.jit
def _keep_mask(
    rows, first_column, width, seed, threshold, COLUMNS: tl.constexpr, SHARES_WORDS: tl.constexpr
):
    """Return which elements of a tile are kept, (rows, COLUMNS); positions count along the rows."""
    # The products are of 64 bits, as one operand is; `width` is a constant where it is 1.
    rows = rows[:, None].to(tl.uint64)
    if SHARES_WORDS:
        columns = first_column // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        lanes = _lanes_of_words(_hash(rows * (width // 4) + columns + seed))
    else:
        position = rows * width + first_column + tl.arange(0, COLUMNS)[None, :]
        words = _hash((position >> 2) + seed)
        lanes = (words >> ((position & 3) * 16)).to(tl.int16)
    return lanes >= threshold


@triton.jit(do_not_specialize=_VARYING)
def _down(
    x, A, u, tokens, width, r, x_stride, seed: Word, threshold, scale,
    blocks_each, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
    SHARES_WORDS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """u[split] = drop(x) Aᵀ over the columns of one split, for ROWS tokens."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    is_token, is_rank = rows < tokens, ranks < r
    row_starts = x + rows.to(tl.int64)[:, None] * x_stride
    total = tl.zeros((ROWS, RANK), tl.float32)
    first = split * blocks_each
    for block in range(first, tl.minimum(first + blocks_each, tl.cdiv(width, COLUMNS))):
        start = block * COLUMNS
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < width
        tile = tl.load(
            row_starts + columns[None, :], mask=is_token[:, None] & is_column[None, :], other=0.0
        )
        factor = tl.load(
            A + ranks[None, :] * width + columns[:, None],
            mask=is_rank[None, :] & is_column[:, None],
            other=0.0,
        )
        keep = _keep_mask(rows, start, width, seed, threshold, COLUMNS, SHARES_WORDS)
        dropped = tl.where(keep, tile.to(OPERAND), 0.0)
        total = tl.dot(dropped, factor.to(OPERAND), total, input_precision="ieee")
    starts = u + (split.to(tl.int64) * tokens + rows)[:, None] * r
    tl.store(starts + ranks[None, :], total * scale, mask=is_token[:, None] & is_rank[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _down_backward(
    x, A, grad_u, grad_A, grad_x, tokens, width, r, x_stride, grad_u_stride, grad_x_stride,
    seed: Word, threshold, scale, blocks_each, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RANK: tl.constexpr, SHARES_WORDS: tl.constexpr, OPERAND: tl.constexpr,
    NEEDS_A: tl.constexpr, NEEDS_X: tl.constexpr,
):  # fmt: skip
    """grad_A[split] = grad_uᵀ drop(x) and grad_x += drop(grad_u A), for COLUMNS columns."""
    start = tl.program_id(0) * COLUMNS
    split = tl.program_id(1)
    columns = start + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANK)
    is_column, is_rank = columns < width, ranks < r
    in_factor = is_rank[:, None] & is_column[None, :]
    in_factor_offsets = ranks[:, None] * width + columns[None, :]
    factor = tl.load(A + in_factor_offsets, mask=in_factor, other=0.0).to(OPERAND)
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    first = split * blocks_each
    for block in range(first, tl.minimum(first + blocks_each, tl.cdiv(tokens, ROWS))):
        rows = block * ROWS + tl.arange(0, ROWS)
        is_token = rows < tokens
        in_tile = is_token[:, None] & is_column[None, :]
        far_rows = rows.to(tl.int64)[:, None]
        thin = tl.load(
            grad_u + far_rows * grad_u_stride + ranks[None, :],
            mask=is_token[:, None] & is_rank[None, :],
            other=0.0,
        ).to(OPERAND)
        keep = _keep_mask(rows, start, width, seed, threshold, COLUMNS, SHARES_WORDS)
        if NEEDS_A:
            tile = tl.load(x + far_rows * x_stride + columns[None, :], mask=in_tile, other=0.0)
            dropped = tl.where(keep, tile.to(OPERAND), 0.0)
            total = tl.dot(tl.trans(thin), dropped, total, input_precision="ieee")
        if NEEDS_X:
            pointers = grad_x + far_rows * grad_x_stride + columns[None, :]
            before = tl.load(pointers, mask=in_tile, other=0.0)
            share = tl.dot(thin, factor, input_precision="ieee") * scale
            after = before.to(tl.float32) + tl.where(keep, share, 0.0)
            tl.store(pointers, after.to(before.dtype), mask=in_tile)
    if NEEDS_A:
        part = grad_A + split.to(tl.int64) * r * width
        tl.store(part + in_factor_offsets, total * scale, mask=in_factor)


@triton.jit(do_not_specialize=_VARYING)
def _drop(x, out, elements, seed: Word, threshold, scale, BLOCK: tl.constexpr):
    """Drop BLOCK elements that lie next to each other, out = drop(x)."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    is_element = position < elements
    value = tl.load(x + position, mask=is_element, other=0.0)
    index = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint64)
    words = _hash(index + seed)[None, :]
    keep = (_lanes_of_words(words) >= threshold).reshape(BLOCK)
    kept = tl.where(keep, value.to(tl.float32) * scale, 0.0)
    tl.store(out + position, kept.to(value.dtype), mask=is_element)


class TritonKernels:
    """The dropping products on tensors; `skinny.py` says what each computes.

    Large activations are 2-dimensional, float32, bfloat16 or float16, with adjacent columns; u,
    grad_u and the factors' gradients are float32.
    """

    def down(self, x: Tensor, A: Tensor, mask: Mask) -> Tensor:
        """Return drop(x) Aᵀ, (tokens, r) in float32."""
        parts = [_down_part(x, part, mask) for part in _factor_parts(A, x.dtype)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def down_backward_(
        self, x: Tensor, A: Tensor, grad_u: Tensor, mask: Mask, grad_x: Tensor | None,
        needs_A: bool,
    ) -> Tensor | None:  # fmt: skip
        """Add drop(grad_u A) to grad_x in place and return grad_uᵀ drop(x) if it is needed."""
        if grad_x is None and not needs_A:
            return None
        factors = _factor_parts(A, x.dtype)
        thins = grad_u.split([len(factor) for factor in factors], 1)
        parts = [
            _down_backward_part(x, factor, thin, mask, grad_x, needs_A)
            for factor, thin in zip(factors, thins, strict=True)
        ]
        given = [part for part in parts if part is not None]
        return torch.cat(given) if len(given) > 1 else next(iter(given), None)

    def drop(self, x: Tensor, mask: Mask) -> Tensor:
        """Drop elements of x; the result is contiguous and in the dtype of x."""
        x = x.contiguous()
        out = torch.empty_like(x)
        grid = (_ceil_div(x.numel(), _FLAT),)
        arguments = (x, out, x.numel(), mask.seed, mask.threshold, mask.scale)
        _launch(_drop, grid, arguments, BLOCK=_FLAT)
        return out


def _down_part(x: Tensor, A: Tensor, mask: Mask) -> Tensor:
    (tokens, width), r = x.shape, A.shape[0]
    programs = _ceil_div(tokens, _ROWS)
    blocks_each, splits = _split(_ceil_div(width, _TILES[x.dtype].columns), programs)
    u = x.new_empty(splits, tokens, r, dtype=torch.float32)
    arguments = (
        *(x, A, u, tokens, width, r, x.stride(0)),
        *(mask.seed, mask.threshold, mask.scale, blocks_each),
    )
    _launch(_down, (programs, splits), arguments, **_constants(x, r))
    return u[0] if splits == 1 else u.sum(0)


def _down_backward_part(
    x: Tensor, A: Tensor, grad_u: Tensor, mask: Mask, grad_x: Tensor | None, needs_A: bool
) -> Tensor | None:
    (tokens, width), r = x.shape, A.shape[0]
    programs = _ceil_div(width, _TILES[x.dtype].columns)
    blocks_each, splits = _split(_ceil_div(tokens, _ROWS), programs)
    grad_A = x.new_empty(splits, r, width, dtype=torch.float32) if needs_A else None
    arguments = (
        *(x, A, grad_u, grad_A, grad_x, tokens, width, r, x.stride(0)),
        *(grad_u.stride(0), 0 if grad_x is None else grad_x.stride(0)),
        *(mask.seed, mask.threshold, mask.scale, blocks_each),
    )
    wanted = {"NEEDS_A": needs_A, "NEEDS_X": grad_x is not None}
    _launch(_down_backward, (programs, splits), arguments, **wanted, **_constants(x, r))
    if grad_A is None:
        return None
    return grad_A[0] if splits == 1 else grad_A.sum(0)


def _launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **constants: Any
) -> None:
    if isinstance(arguments[0], FakeTensor):  # nothing is computed for it
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, num_warps=_WARPS, **constants)


def _constants(x: Tensor, r: int) -> dict[str, Any]:
    """Return the constants that the products' kernels are compiled for."""
    # The interpreter's dot multiplies the bits of bfloat16 numbers, not their values.
    is_interpreted = x.device.type == "cpu"
    return {
        "ROWS": _ROWS,
        "COLUMNS": _TILES[x.dtype].columns,
        "RANK": max(_LEAST_RANK, 1 << (r - 1).bit_length()),
        "SHARES_WORDS": x.shape[1] % 4 == 0,
        "OPERAND": _TRITON_DTYPES[torch.float32 if is_interpreted else x.dtype],
    }


_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def _ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)


def _split(blocks: int, programs: int) -> tuple[int, int]:
    """Split a sum over `blocks` among several programs; without it there would be `programs`.

    Returns: Blocks per program, and the number of programs that share a sum; they depend only on
        the shapes, so every GPU adds in the same order.
    """
    splits = max(1, min(blocks, _PROGRAMS // max(programs, 1)))
    blocks_each = _ceil_div(blocks, splits) if blocks else 1
    return blocks_each, max(1, _ceil_div(blocks, blocks_each))


def _factor_parts(factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return a factor, (r, in), in the dtype of the products and cut to ranks that fit a tile."""
    return factor.detach().to(dtype).contiguous().split(_TILES[dtype].largest_rank)
