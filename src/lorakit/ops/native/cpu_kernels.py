"""The products of `skinny.py` in C: tensors in, addresses and sizes out to the compiled library."""

# torch has no public name for the tracing state, and its types say that it is never None.
# pyright: reportPrivateUsage=false, reportUnnecessaryComparison=false

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.ops.native.compiled_library import library

NO_BUFFERS = "The low-rank products could not allocate their small buffers."
LARGE_DTYPES = (torch.float32, torch.bfloat16)
"""dtypes of activations and dense weights."""
THIN_DTYPES = (torch.float32, torch.bfloat16)
"""dtypes of A and B in products that make no gradients."""
_BACKWARD_DTYPES = (torch.float32,)
_RECORDER = torch._C._TorchDispatchModeKey.PROXY
"""The mode with which make_fx records a graph."""


class _Dropout(ctypes.Structure):
    _fields_ = (
        ("is_on", ctypes.c_int),
        ("threshold", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("shift", ctypes.c_long),
    )


class Matrix(ctypes.Structure):
    """A large activation, as activation.h describes it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("is_half", ctypes.c_int),
        ("stride", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("width", ctypes.c_long),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_long),
        ("end", ctypes.c_long),
        ("thin", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("thin_is_half", ctypes.c_int),
        ("r", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("mask", _Dropout),
    )


_GROUP_WORDS = ctypes.sizeof(_Group) // 8

NO_DROPOUT = _Dropout(0, 0, 1.0, 0, 0)


class Group(NamedTuple):
    """Rows of an activation that one adapter acts on."""

    begin: int
    end: int
    """Rows begin to end, end excluded."""
    thin: Tensor
    """A, (r, in), or B, (out, r)."""
    r: int
    scaling: float = 1.0
    mask: _Dropout = NO_DROPOUT
    gradient: Tensor | None = None
    """Accumulated gradient in float32, shape of `thin`."""


class Groups:
    """Groups for the compiled products; keeps alive what they point to.

    Args:
        groups: The groups, in the order of their rows.
        dtypes: Those in which the product reads thin matrices; others are copied to float32.
    """

    def __init__(self, groups: Sequence[Group], dtypes: Sequence[torch.dtype] = THIN_DTYPES):
        self.tensors: list[tuple[Tensor, Tensor | None]] = []
        rows: list[_Group] = []
        for begin, end, thin, r, scaling, mask, gradient in groups:
            compact = _thin(thin, dtypes)
            self.tensors.append((compact, gradient))
            addresses = address(compact), None if gradient is None else address(gradient)
            is_half = compact.dtype == torch.bfloat16
            rows.append(_Group(begin, end, *addresses, is_half, r, scaling, mask))
        self.count = len(rows)
        self.array = (_Group * len(rows))(*rows)
        self.address = ctypes.addressof(self.array)

    def for_backward(self, gradients: Sequence[int]) -> Groups:
        """Return the groups for a product of backward, which reads float32 only.

        Args:
            gradients: Address of what the product adds the gradient of each thin matrix to,
                float32; 0 where none is needed.
        """
        rows: Any = (_Group * self.count)()
        ctypes.memmove(rows, self.address, ctypes.sizeof(rows))
        words = np.frombuffer(rows, dtype=np.int64).reshape(-1, _GROUP_WORDS)
        words[:, _Group.gradient.offset // 8] = gradients
        groups = Groups.describe(self.count, ctypes.addressof(rows), rows, [])
        for number, (thin, _) in enumerate(self.tensors):
            compact = _thin(thin, _BACKWARD_DTYPES)
            if compact is not thin:
                rows[number].thin, rows[number].thin_is_half = address(compact), False
            groups.tensors.append((compact, None))
        return groups

    @classmethod
    def describe(
        cls, count: int, address: int, kept: object, tensors: list[tuple[Tensor, Tensor | None]]
    ) -> Groups:
        """Return groups that lie at an address, as long as an object is kept."""
        groups = cls.__new__(cls)
        groups.count, groups.address, groups.array, groups.tensors = count, address, kept, tensors
        return groups


class GroupTable:
    """Groups of `down` and `up_` of many adapters, described once, of which each batch takes some.

    They lie in an array of words, (2, slots, words of a group): numpy takes rows of records, and
    writes their fields, far more slowly.
    """

    def __init__(self) -> None:
        self._rows = np.zeros((2, 0, _GROUP_WORDS), dtype=np.int64)
        self._kept: dict[int, Groups] = {}

    def put(self, slot: int, down: Group, up: Group) -> None:
        """Write the two groups of an adapter into a slot."""
        slots = self._rows.shape[1]
        if slot >= slots:
            larger = np.zeros((2, max(8, 2 * slot), _GROUP_WORDS), dtype=np.int64)
            larger[:, :slots] = self._rows
            self._rows = larger
        self._kept[slot] = both = Groups((down, up))
        array: Any = both.array
        self._rows[:, slot] = np.frombuffer(array, dtype=np.int64).reshape(2, -1)

    def clear(self, slot: int) -> None:
        """Let go of what a slot points to."""
        self._kept.pop(slot, None)

    def take(
        self, slots: np.ndarray, begins: np.ndarray, ends: np.ndarray
    ) -> tuple[Groups, Groups]:
        """Return the groups of some slots with their rows of an activation."""
        rows = self._rows.take(slots, axis=1)
        rows[:, :, 0], rows[:, :, 1] = begins, ends
        kept = [self._kept[slot].tensors for slot in slots.tolist()]
        count, first = len(slots), rows.__array_interface__["data"][0]
        second = first + count * ctypes.sizeof(_Group)
        return (
            Groups.describe(count, first, rows, [down for down, _ in kept]),
            Groups.describe(count, second, rows, [up for _, up in kept]),
        )


def backward_groups(groups: Sequence[Group]) -> Groups:
    """Return groups for the products of backward, which read float32 only."""
    return Groups(groups, _BACKWARD_DTYPES)


def takes(x: Tensor) -> bool:
    """Return whether the compiled products can read this activation."""
    return x.dtype in LARGE_DTYPES and x.device.type == "cpu" and can_be_read_at_its_address(x)


def can_be_read_at_its_address(x: Tensor) -> bool:
    """Return whether code outside torch can read x as rows of adjacent elements.

    False while a trace or graph is recorded, which would miss what such code writes. A fake tensor
    counts as the tensor it represents; nothing is computed for it.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter, FakeTensor)
        and x.ndim > 0
        and x.stride(-1) == 1
        and not is_recorded()
    )


def is_recorded() -> bool:
    """Return whether torch.jit.trace or make_fx records what runs, but not what runs in C."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._get_dispatch_mode(_RECORDER) is not None
    )


class CpuKernels:
    """The functions of native/skinny.c on tensors; `skinny.py` says what each computes.

    Large activations are 2-dimensional, float32 or bfloat16, with adjacent columns; everything
    thin is float32, contiguous except for the rows of u and grad_u; A and B may be bfloat16.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        large, mask = ctypes.POINTER(Matrix), ctypes.POINTER(_Dropout)
        groups = (ctypes.c_void_p, ctypes.c_int)  # `Groups.address`
        u = (ctypes.c_void_p, ctypes.c_long)
        for name, signature in {
            "lorakit_down": (large, *groups, *u),
            "lorakit_up": (large, *groups, *u),
            "lorakit_add": (large, large, groups[0], *groups),
            "lorakit_add_prepared": (ctypes.c_void_p,) * 3,
            "lorakit_up_backward": (large, *groups, *u, *u),
            "lorakit_down_backward": (large, *groups, *u, large),
            "lorakit_drop": (large, large, mask),
        }.items():
            getattr(library, name).argtypes = signature
            getattr(library, name).restype = ctypes.c_int
        self.add_prepared = library.lorakit_add_prepared
        """`add_groups_` of what an address describes, with those of x and h; see `PreparedAdd`."""

    # ---- one adapter for all rows ----

    def down(self, x: Tensor, A: Tensor, mask: _Dropout) -> Tensor:
        """Return drop(x) Aᵀ, (tokens, r) in float32."""
        u = empty_float32(x.shape[0], A.shape[0])
        self.down_groups(x, Groups([Group(0, x.shape[0], A, A.shape[0], mask=mask)]), u)
        return u

    def up_(self, h: Tensor, u: Tensor, B: Tensor, scaling: float) -> None:
        """Add s u Bᵀ to h in place."""
        self.up_groups_(h, Groups([Group(0, h.shape[0], B, B.shape[1], scaling)]), u)

    def add_(
        self, h: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, mask: _Dropout
    ) -> None:
        """Add s drop(x) Aᵀ Bᵀ to h in place, if u is not needed afterwards."""
        tokens, r = x.shape[0], A.shape[0]
        down = Groups([Group(0, tokens, A, r, mask=mask)])
        self.add_groups_(h, x, down, Groups([Group(0, tokens, B, r, scaling)]))

    def up_backward(
        self, g: Tensor, u: Tensor, B: Tensor, scaling: float, grad_u: Tensor, needs_B: bool
    ) -> Tensor | None:
        """Write s g B into grad_u and return s gᵀ u, (out, r), if that is needed."""
        grad_B = zeros_float32(B.shape) if needs_B else None
        one = Group(0, g.shape[0], B, B.shape[1], scaling, gradient=grad_B)
        self.up_backward_groups(g, backward_groups([one]), u, grad_u)
        return grad_B

    def down_backward_(
        self, x: Tensor, A: Tensor, grad_u: Tensor, mask: _Dropout, grad_x: Tensor | None,
        needs_A: bool,
    ) -> Tensor | None:  # fmt: skip
        """Add drop(grad_u A) to grad_x in place and return grad_uᵀ drop(x) if it is needed."""
        grad_A = zeros_float32(A.shape) if needs_A else None
        one = Group(0, x.shape[0], A, A.shape[0], mask=mask, gradient=grad_A)
        self.down_backward_groups_(x, backward_groups([one]), grad_u, grad_x)
        return grad_A

    # ---- one adapter for each group of rows ----

    def down_groups(self, x: Tensor, groups: Groups, u: Tensor) -> None:
        """Write drop(x) Aᵀ of each group into u, (tokens, largest r)."""
        self._call(self._library.lorakit_down, matrix(x), groups.address, groups.count, *_rows(u))

    def up_groups_(self, h: Tensor, groups: Groups, u: Tensor) -> None:
        """Add s u Bᵀ of each group to h in place."""
        self._call(self._library.lorakit_up, matrix(h), groups.address, groups.count, *_rows(u))

    def add_groups_(self, h: Tensor, x: Tensor, down: Groups, up: Groups) -> None:
        """Add s drop(x) Aᵀ Bᵀ of each group to h in place; both are groups of the same rows."""
        self._call(
            self._library.lorakit_add, matrix(x), matrix(h), down.address, up.address, up.count
        )

    def up_backward_groups(self, g: Tensor, groups: Groups, u: Tensor, grad_u: Tensor) -> None:
        """Write s g B into grad_u and add s gᵀ u to the groups' gradients."""
        self._call(
            self._library.lorakit_up_backward,
            *(matrix(g), groups.address, groups.count, *_rows(u), *_rows(grad_u)),
        )

    def down_backward_groups_(
        self, x: Tensor, groups: Groups, grad_u: Tensor, grad_x: Tensor | None
    ) -> None:
        """Add drop(grad_u A) to grad_x, and grad_uᵀ drop(x) to the groups' gradients."""
        large = None if grad_x is None else matrix(grad_x)
        self._call(
            self._library.lorakit_down_backward,
            *(matrix(x), groups.address, groups.count, *_rows(grad_u), large),
        )

    def drop(self, x: Tensor, mask: _Dropout) -> Tensor:
        """Drop elements of x; the result is contiguous and in the dtype of x."""
        out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        self._call(self._library.lorakit_drop, matrix(x), matrix(out), mask)
        return out

    def _call(self, function: Callable[..., int], x: Matrix, *arguments: object) -> None:
        if x.data and function(x, *arguments):
            raise MemoryError(NO_BUFFERS)


def dropout_arguments(threshold: int, scale: float, seed: int, shift: int = 0) -> _Dropout:
    """Return a mask's description for the compiled products; see `dropout.py` for its meaning.

    Args:
        threshold: Lanes below it are dropped.
        scale: 1 / keep probability.
        seed: The mask's seed.
        shift: Added to the number of a row of the activation, it gives the row of the mask.
    """
    return _Dropout(1, threshold, scale, seed, shift)


def matrix(x: Tensor) -> Matrix:
    """Describe a large activation, (rows, width) with adjacent columns."""
    rows, width = x.shape
    return Matrix(address(x), x.dtype == torch.bfloat16, x.stride(0), rows, width)


def _rows(u: Tensor) -> tuple[int, int]:
    return address(u), u.stride(0)


def address(x: Tensor) -> int:
    """Return the address of a tensor's first element; 0 for a fake one, which has none."""
    return 0 if isinstance(x, FakeTensor) else x.data_ptr()


def empty_float32(*shape: int) -> Tensor:
    """Return an output for the compiled products, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros_float32(shape: Sequence[int]) -> Tensor:
    """Return zeros for the compiled products to add to, whatever torch's defaults are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _thin(factor: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Return a factor contiguous and in one of the dtypes; itself if it is that already."""
    if factor.dtype not in dtypes:
        factor = factor.detach().to(torch.float32)
    return factor if factor.is_contiguous() else factor.detach().contiguous()


@cache
def load() -> CpuKernels | None:
    """Return the compiled products, or None if they are unavailable.

    `compiled_library.unavailable` says why.
    """
    found = library()
    return None if found is None else CpuKernels(found)
