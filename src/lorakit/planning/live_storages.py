"""Count the memory of live tensors by purpose.

A dispatch mode sees every operation, on fake and on real tensors, and records the storages of the
results; a weak reference to each reports when it is freed. The purpose of a storage is often known
only later (activations when backward starts, gradients when it ends), so each storage keeps a
record of its lifetime, and the peak is divided by purpose afterwards.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Purpose(StrEnum):
    """Purpose of memory."""

    BASE = "base weights"
    ADAPTER = "trained weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer state"
    ACTIVATIONS = "saved activations"
    LOGITS = "logits"
    BATCH = "batch"
    COMMUNICATION = "communication"
    TEMPORARY = "temporaries"


@dataclass(slots=True)
class _Record:
    """Lifetime of a storage, counted in storages allocated so far."""

    size_bytes: int
    born: int
    died: int | None = None
    purpose: Purpose | None = None


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results of an operation, which nests lists and tuples.

    It is quicker than the functions for arbitrary trees, and runs for each operation of a step.
    """
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)


class LiveStorages(TorchDispatchMode):
    """Dispatch mode that counts the storages on one type of device.

    Attributes:
        level_bytes: Bytes alive now.
        peak_bytes: Largest number of bytes alive at the same time.
        peak_place: Value of `place` at the peak.
        place: Name of the running module; set by the caller.
    """

    def __init__(self, device_type: str, vocabulary: int | None = None):
        """Start with nothing counted.

        Args:
            device_type: Device type, such as "cpu"; tensors elsewhere are not counted.
            vocabulary: Size of the last dimension that identifies logits.
        """
        super().__init__()
        self.level_bytes = 0
        self.peak_bytes = 0
        self.place = ""
        self.peak_place = ""
        self._device_type = device_type
        self._vocabulary = vocabulary
        self._living: dict[int, tuple[weakref.ref[Any], _Record]] = {}
        self._records: list[_Record] = []
        self._clock = 0
        self._peak_at = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count new storages in its result."""
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.prim.device.default:
            for tensor in tensors_in(result):
                self._note(tensor, may_be_logits=True)
        return result

    def adopt(self, tensors: Iterable[Tensor], purpose: Purpose) -> None:
        """Count existing tensors, unless they are counted already."""
        for tensor in tensors:
            record = self._note(tensor)
            if record is not None and record.purpose is None:
                record.purpose = purpose

    def assign(self, tensors: Iterable[Tensor], purpose: Purpose) -> None:
        """Set the purpose of counted storages, replacing an earlier one."""
        for tensor in tensors:
            living = self._living.get(tensor.untyped_storage()._cdata)
            if living is not None:
                living[1].purpose = purpose

    def assign_rest(self, purpose: Purpose) -> None:
        """Set the purpose of all live storages that have none yet."""
        for _, record in self._living.values():
            if record.purpose is None:
                record.purpose = purpose

    def forget_peak(self) -> None:
        """Reset the peak to the bytes alive now."""
        self.peak_bytes, self.peak_place, self._peak_at = self.level_bytes, self.place, self._clock

    def living_bytes(self) -> Counter[Purpose]:
        """Return the bytes alive now, by purpose."""
        return _by_purpose(record for _, record in self._living.values())

    def peak_by_purpose(self) -> Counter[Purpose]:
        """Return the bytes alive at the peak, by purpose."""
        at = self._peak_at
        return _by_purpose(
            record
            for record in self._records
            if record.born <= at and (record.died is None or record.died > at)
        )

    def _note(self, tensor: Tensor, *, may_be_logits: bool = False) -> _Record | None:
        if tensor.device.type != self._device_type:
            return None
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # a wrapper; its inner tensors are seen separately
            return None
        key = storage._cdata
        known = self._living.get(key)
        if known is not None:
            return known[1]
        record = _Record(storage.nbytes(), self._clock + 1)
        if may_be_logits and self._vocabulary and _are_logits(tensor, self._vocabulary):
            record.purpose = Purpose.LOGITS
        self._clock += 1
        self._records.append(record)
        self._living[key] = (weakref.ref(storage, partial(self._record_end, key)), record)
        self.level_bytes += record.size_bytes
        if self.level_bytes > self.peak_bytes:
            self.peak_bytes = self.level_bytes
            self.peak_place = self.place
            self._peak_at = self._clock
        return record

    def _record_end(self, key: int, _: Any) -> None:
        _, record = self._living.pop(key)
        record.died = self._clock + 1
        self.level_bytes -= record.size_bytes


def _by_purpose(records: Iterable[_Record]) -> Counter[Purpose]:
    sums: Counter[Purpose] = Counter()
    for record in records:
        sums[record.purpose or Purpose.TEMPORARY] += record.size_bytes
    return sums


def _are_logits(tensor: Tensor, vocabulary: int) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point() and tensor.shape[-1] == vocabulary
