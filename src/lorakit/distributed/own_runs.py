"""Processes of a launcher that train different runs, beside each other.

torchrun ends all processes as soon as one of them fails, so each waits for the others at its end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from lorakit.distributed.launcher import launched_processes, launched_rank

T = TypeVar("T")

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_AGENT_HAS_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_POLL_S = 0.5


def own_share(items: Sequence[T]) -> list[T]:
    """Return the items of this process: every N-th for N processes of a launcher."""
    return [*items[launched_rank() :: launched_processes()]]


@contextmanager
def beside_others() -> Iterator[None]:
    """Let this process compute as if it were alone inside the block, on its own GPU.

    At the end of the block it waits until the other processes have left theirs.
    """
    store = _store()
    count = int(os.environ["WORLD_SIZE"])
    hidden = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    visible = os.environ.get(_VISIBLE)
    gpu = _gpu(visible, int(hidden.get("LOCAL_RANK", "0")))
    if gpu is not None:
        os.environ[_VISIBLE] = gpu
    try:
        yield
    finally:
        os.environ.update(hidden)
        if gpu is not None:
            os.environ.pop(_VISIBLE)
            os.environ.update({} if visible is None else {_VISIBLE: visible})
        with suppress(distributed.DistError):  # the launcher has ended
            _wait_for_all(store, "lorakit/ended", count)
            if _hosts_store():  # which must not end while others look
                _wait_for_all(store, "lorakit/left", count)
            else:
                store.add("lorakit/left", 1)


def _wait_for_all(store: Any, key: str, count: int) -> None:
    """Wait until as many processes have called this, or added one to the key."""
    store.add(key, 1)
    while store.add(key, 0) < count:
        time.sleep(_POLL_S)


def _store() -> Any:
    """Return the launcher's store, where all of its processes meet."""
    return distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=_hosts_store(),
        wait_for_workers=False,
        timeout=timedelta(minutes=30),
    )


def _hosts_store() -> bool:
    return os.environ.get("RANK") == "0" and os.environ.get(_AGENT_HAS_STORE) != "True"


def _gpu(visible: str | None, local_rank: int) -> str | None:
    """Return the GPU of a process, as `CUDA_VISIBLE_DEVICES` names it; None without GPUs."""
    if visible is None:
        names = [str(number) for number in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name]
    return names[local_rank % len(names)] if names else None
