"""The OpenMP threads that torch computes with."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SOFT_PAUSE = 1
"""`omp_pause_soft`: threads end, settings stay."""


def runtime() -> str | None:
    """Return the path of the OpenMP library that torch uses, or None if it is unknown.

    Other packages (such as scikit-learn) bring their own copies, each with threads that busily wait
    for work: two of them in one process would slow each other down.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = [line.split(maxsplit=5)[-1] for line in maps.read_text(encoding="utf-8").splitlines()]
    names = ("libgomp", "libomp", "libiomp")
    loaded = list(dict.fromkeys(path for path in paths if Path(path).name.startswith(names)))
    package = Path(torch.__file__).resolve().parent  # loaded paths have no links in them
    of_torch = [path for path in loaded if path.startswith((f"{package}/", f"{package}.libs/"))]
    if of_torch:
        return of_torch[0]
    return loaded[0] if len(loaded) == 1 else None


def end_waiting_threads() -> None:
    """End the OpenMP threads of the calling thread; its next large product starts them again.

    Each thread that computes gets its own pool. While the pools together have more threads
    than the machine has processors, gcc's OpenMP lets all of them sleep between two products
    instead of waiting busily, and waking them costs a product of a decoding step more than it
    computes. A thread that will not compute for a while therefore gives its pool back.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT_PAUSE)


def compute_alone() -> None:
    """Let torch's loops in the calling thread run without others from now on, so without a pool.

    For a thread that does little beside one that is waited for: see `end_waiting_threads`.
    Products of large matrices still take all threads.
    """
    torch.get_num_threads()  # torch chooses their number at its first call in a thread
    compute_with(1)


def compute_with(threads: int) -> None:
    """Let torch's loops in the calling thread run in this many threads from now on."""
    set_threads = _function("omp_set_num_threads")
    if set_threads is not None:
        set_threads(threads)


def _pause() -> Any:
    return _function("omp_pause_resource_all")


@cache
def _function(name: str) -> Any:
    path = runtime()
    if path is None or not Path(path).name.startswith("libgomp"):
        return None
    return getattr(ctypes.CDLL(path), name, None)
