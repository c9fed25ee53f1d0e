"""The products of `skinny.py` that drop, in Triton: on a GPU they read each activation once.

Without dropout torch's own products are what a kernel would have to beat: a thin product is one
pass over the activation there too, and the factors' other side (`up_`, `up_backward`) is never
dropped. Under dropout torch would make the mask (8 bytes of hash for every 4 elements, several
passes), write a dropped copy of x and read it again. So three products are written here, which
hash on the fly between the load and the tensor cores:

    down             u = drop(x) Aᵀ                            reads x
    down_backward_   dL/dA = (dL/du)ᵀ drop(x) and
                     dL/dx += drop'(dL/du A)                   reads x, reads and writes dL/dx
    drop             drop(x)                                   reads x, writes it

`down_backward_` hashes once for both of its results. Hashing is the arithmetic that counts: where
a row holds a whole number of hash words, four neighbouring elements share one; otherwise each
element hashes for itself.

Products take the factors in the activation's dtype and add up in float32, float32 ones without
TF32; the scaling by 1 / keep probability multiplies the sums and not the elements, so a 16-bit
element is never rounded on its way. Sums over many blocks are split among programs by the shapes
alone and added up in a fixed order, without atomics: results repeat bit for bit.
"""

from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

# Constants of the SplitMix64 generator (Steele, Lea and Flood 2014, OOPSLA, figure 16).
_WEYL_STEP = tl.constexpr(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = tl.constexpr(0x94D049BB133111EB)

_ROWS = 32
"""Tokens of a tile."""
_LEAST_RANK = 16
"""The tensor cores' smallest side: thinner factors are padded with zeros in registers."""
_LARGEST_RANK = 64
"""Factors of more rows go through in parts, lest a tile's sums outgrow the registers."""
_PROGRAMS = 512
"""Programs a launch aims at by splitting its sums: a few for each of a large GPU's processors."""
_FLAT = 2048
"""Elements that one program of `drop` takes."""


class Mask(Protocol):
    """What a kernel needs to know of a dropout mask; `dropout.kernel_mask` makes it."""

    threshold: int
    """Signed 16-bit lanes below it are dropped."""
    scale: float
    """1 / keep probability."""
    seed: int


@triton.jit
def _hash(z):
    """Return the SplitMix64 words of seed + index, given as uint64; products wrap around."""
    z = z * _WEYL_STEP
    z = (z ^ (z >> 30)) * _FIRST_MULTIPLIER
    z = (z ^ (z >> 27)) * _SECOND_MULTIPLIER
    return z ^ (z >> 31)


@triton.jit
def _lanes_of_words(words):
    """Cut (m, n) words into (m, 4 n) signed 16-bit lanes, lowest first."""
    low = tl.join(words.to(tl.int16), (words >> 32).to(tl.int16))
    high = tl.join((words >> 16).to(tl.int16), (words >> 48).to(tl.int16))
    return tl.join(low, high).reshape(words.shape[0], 4 * words.shape[1])


@triton.jit
def _kept(
    rows, first_column, width, seed, threshold, COLUMNS: tl.constexpr, SHARES_WORDS: tl.constexpr
):
    """Return which elements of a tile are kept, (rows, COLUMNS); positions count along the rows."""
    rows = rows[:, None].to(tl.uint64)
    if SHARES_WORDS:
        columns = first_column // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        index = rows * (width // 4).to(tl.uint64) + columns.to(tl.uint64)
        lanes = _lanes_of_words(_hash(index + seed.to(tl.uint64)))
    else:
        columns = first_column + tl.arange(0, COLUMNS)[None, :]
        position = rows * width.to(tl.uint64) + columns.to(tl.uint64)
        words = _hash((position >> 2) + seed.to(tl.uint64))
        lanes = (words >> ((position & 3) * 16)).to(tl.int16)
    return lanes >= threshold


@triton.jit
def _down(
    x, A, u, tokens, width, r, x_stride, seed: tl.uint64, threshold, scale,
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
        keep = _kept(rows, start, width, seed, threshold, COLUMNS, SHARES_WORDS)
        dropped = tl.where(keep, tile.to(OPERAND), 0.0)
        total = tl.dot(dropped, factor.to(OPERAND), total, input_precision="ieee")
    starts = u + (split.to(tl.int64) * tokens + rows)[:, None] * r
    tl.store(starts + ranks[None, :], total * scale, mask=is_token[:, None] & is_rank[None, :])


@triton.jit
def _down_backward(
    x, A, grad_u, grad_A, grad_x, tokens, width, r, x_stride, grad_u_stride, grad_x_stride,
    seed: tl.uint64, threshold, scale, blocks_each, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
    if NEEDS_X:
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
        keep = _kept(rows, start, width, seed, threshold, COLUMNS, SHARES_WORDS)
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


@triton.jit
def _drop(x, out, elements, seed: tl.uint64, threshold, scale, BLOCK: tl.constexpr):
    """Drop BLOCK elements that lie next to each other, out = drop(x)."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    is_element = position < elements
    value = tl.load(x + position, mask=is_element, other=0.0)
    index = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint64)
    words = _hash(index + seed.to(tl.uint64))[None, :]
    keep = (_lanes_of_words(words) >= threshold).reshape(BLOCK)
    kept = tl.where(keep, value.to(tl.float32) * scale, 0.0)
    tl.store(out + position, kept.to(value.dtype), mask=is_element)


class TritonKernels:
    """The dropping products on tensors; what each computes is said in `skinny.py`.

    Large activations are 2-dimensional, float32, bfloat16 or float16, with adjacent columns; u,
    grad_u and what is returned of the factors is float32.
    """

    def down(self, x: Tensor, A: Tensor, mask: Mask) -> Tensor:
        """Return drop(x) Aᵀ, (tokens, r) in float32."""
        A = _thin(A, x.dtype)
        parts = [self._down_part(x, part, mask) for part in A.split(_LARGEST_RANK)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _down_part(self, x: Tensor, A: Tensor, mask: Mask) -> Tensor:
        (tokens, width), r = x.shape, A.shape[0]
        columns = _columns(x.dtype)
        programs = triton.cdiv(tokens, _ROWS)
        blocks_each, splits = _split(triton.cdiv(width, columns), programs)
        u = x.new_empty(splits, tokens, r, dtype=torch.float32)
        with torch.cuda.device_of(x):
            _down[(programs, splits)](
                *(x, A, u, tokens, width, r, x.stride(0)),
                *(mask.seed, mask.threshold, mask.scale, blocks_each),
                ROWS=_ROWS,
                COLUMNS=columns,
                **_common(x, r),
            )
        return u[0] if splits == 1 else u.sum(0)

    def down_backward_(
        self, x: Tensor, A: Tensor, grad_u: Tensor, mask: Mask, grad_x: Tensor | None,
        needs_A: bool,
    ) -> Tensor | None:  # fmt: skip
        """Add drop(grad_u A) to grad_x in place and return grad_uᵀ drop(x) where it is needed."""
        A = _thin(A, x.dtype)
        parts = [
            self._down_backward_part(x, part, thin, mask, grad_x, needs_A)
            for part, thin in zip(A.split(_LARGEST_RANK), grad_u.split(_LARGEST_RANK, 1), strict=True)
        ]
        given = [part for part in parts if part is not None]
        return torch.cat(given) if len(given) > 1 else next(iter(given), None)

    def _down_backward_part(
        self, x: Tensor, A: Tensor, grad_u: Tensor, mask: Mask, grad_x: Tensor | None,
        needs_A: bool,
    ) -> Tensor | None:  # fmt: skip
        (tokens, width), r = x.shape, A.shape[0]
        columns = _columns(x.dtype)
        programs = triton.cdiv(width, columns)
        blocks_each, splits = _split(triton.cdiv(tokens, _ROWS), programs)
        grad_A = x.new_empty(splits, r, width, dtype=torch.float32) if needs_A else None
        if grad_A is None and grad_x is None:
            return None
        with torch.cuda.device_of(x):
            _down_backward[(programs, splits)](
                *(x, A, grad_u, grad_A, grad_x, tokens, width, r, x.stride(0)),
                *(grad_u.stride(0), 0 if grad_x is None else grad_x.stride(0)),
                *(mask.seed, mask.threshold, mask.scale, blocks_each),
                ROWS=_ROWS,
                COLUMNS=columns,
                NEEDS_A=needs_A,
                NEEDS_X=grad_x is not None,
                **_common(x, r),
            )
        if grad_A is None:
            return None
        return grad_A[0] if splits == 1 else grad_A.sum(0)

    def drop(self, x: Tensor, mask: Mask) -> Tensor:
        """Drop elements of x; the result is contiguous and in the dtype of x."""
        x = x.contiguous()
        out = torch.empty_like(x)
        with torch.cuda.device_of(x):
            _drop[(triton.cdiv(x.numel(), _FLAT),)](
                x, out, x.numel(), mask.seed, mask.threshold, mask.scale, BLOCK=_FLAT
            )
        return out


def _common(x: Tensor, r: int) -> dict[str, Any]:
    """Return what the products' kernels are compiled for besides the sizes of their tiles."""
    # The interpreter's dot multiplies the bits of bfloat16 numbers, not their values.
    is_interpreted = x.device.type == "cpu"
    operand = torch.float32 if is_interpreted else x.dtype
    return {
        "RANK": max(_LEAST_RANK, triton.next_power_of_2(r)),
        "SHARES_WORDS": x.shape[1] % 4 == 0,
        "OPERAND": _TRITON_DTYPES[operand],
    }


_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def _columns(dtype: torch.dtype) -> int:
    """Return the columns of a tile: 256 bytes of each row."""
    return 256 // dtype.itemsize


def _split(blocks: int, programs: int) -> tuple[int, int]:
    """Share `blocks` that would be added up by one program, of `programs`, among several.

    Returns: Blocks for each, and how many share them; of the shapes alone, so that sums are made
        in the same order on every GPU.
    """
    splits = max(1, min(blocks, _PROGRAMS // max(programs, 1)))
    blocks_each = triton.cdiv(blocks, splits) if blocks else 1
    return blocks_each, max(1, triton.cdiv(blocks, blocks_each))


def _thin(factor: Tensor, dtype: torch.dtype) -> Tensor:
    return factor.detach().to(dtype).contiguous()
