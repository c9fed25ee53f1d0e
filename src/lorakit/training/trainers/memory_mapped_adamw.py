"""AdamW with its state in a memory-mapped file, which the operating system can page out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.files.disks import reporting_disk_errors

STATE_FILE_PREFIX = ".optimizer-state-"
_STATES = ("exp_avg", "exp_avg_sq")
_ALIGNMENT_BYTES = 64


class MemoryMappedAdamW(torch.optim.AdamW):
    """torch's AdamW with state that does not need to stay in memory.

    It corresponds to paged optimizers on a GPU: the two running means are accessed once per step,
    and in between their pages may leave memory. The system writes them to the file, without swap
    space, and reads them again in the next step. The results are bit-identical to torch's.

    The file is unlinked as soon as it is mapped, so nothing is left however the process ends.
    Checkpoints contain the state as with any optimizer.

    Args:
        params: Parameters as for torch's AdamW, on the CPU.
        directory: Directory of the file, on a disk; in a tmpfs the state would stay in memory.
        options: Options of torch's AdamW.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (paged optimizers).
    """

    def __init__(self, params: Any, *, directory: str | Path, **options: Any):
        super().__init__(params, **options)
        self._directory = Path(directory)
        self._place_state()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _place_state(self) -> None:
        """Create the zero state of every parameter in the file, as torch does at the first step."""
        parameters = self._parameters()
        places = iter(_map_zeros([p for p in parameters for _ in _STATES], self._directory))
        for parameter in parameters:
            self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32)}
            for name in _STATES:
                self.state[parameter][name] = next(places)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, in the constructor only.

        Raises:
            ValueError: The optimizer has been constructed.
        """
        if hasattr(self, "_directory"):
            raise ValueError(
                "Cannot add parameters to a MemoryMappedAdamW: its file has a fixed size. Pass "
                "all of them to the constructor."
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the file."""
        places = {p: dict(self.state[p]) for p in self._parameters()}
        super().load_state_dict(state_dict)
        for parameter, place in places.items():
            loaded = self.state[parameter]
            for name in _STATES:
                if name in loaded:
                    place[name].copy_(loaded[name])
                    loaded[name] = place[name]


def _map_zeros(like: Iterable[Tensor], directory: Path) -> list[Tensor]:
    """Return zeros of the same shapes and dtypes, consecutive in one mapped file."""
    tensors = list(like)
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        size = tensor.numel() * tensor.element_size()
        end += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    if not end:
        return [torch.zeros_like(tensor) for tensor in tensors]
    directory.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=STATE_FILE_PREFIX, dir=directory)
    try:
        with reporting_disk_errors(directory / path, "the optimizer's state", lambda: end):
            _allocate(handle, end)
        storage = torch.UntypedStorage.from_file(path, True, end)
    finally:
        os.close(handle)
        os.unlink(path)
    made = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        empty = torch.empty(0, dtype=tensor.dtype)
        start = offset // tensor.element_size()
        made.append(empty.set_(storage, start, tensor.shape))  # type: ignore[arg-type]  # overloaded for storages
    return made


def _allocate(handle: int, size: int) -> None:
    """Allocate disk space for a file: writing to a hole on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)
