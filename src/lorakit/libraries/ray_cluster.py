"""Start Ray or join a cluster, and check its resources."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorakit.errors import ClusterError, ConfigError

_TIMEOUT_S = 5.0
"""Timeout of a connection to an address."""

_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}  # disable the usage statistics of Ray


@dataclass(frozen=True)
class Machine:
    """Resources of one machine of a cluster."""

    address: str
    cpus: float
    gpus: float


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[list[Machine]]:
    """Run Ray inside the block and yield its machines.

    Ray that this process already runs is used and left running.

    Args:
        address: "host:port" of the head of a cluster that this machine belongs to, or "auto" for
            the cluster on this machine; None starts Ray for this process alone.

    Yields:
        Machines of the cluster.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: No cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield _machines(ray)
        return
    if address is not None:
        _require_answer(address)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    by_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",  # without it, Ray reads RAY_ADDRESS
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"at --address {address}" if address else "on this machine"
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else ""
        raise ClusterError(
            f"Cannot reach or start Ray {where}: {reason or type(error).__name__}. "
            "Check that `ray status` answers there and that both run the same versions of Ray "
            "and Python; without an address, Ray starts on this machine alone."
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, by_sigterm)  # Ray's handler would exit with code 15
        yield _machines(ray)
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Import Ray, which the extra `tune` installs.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"Ray is not installed ({error}), but searches, studies and training on several "
            "machines require it. Install it with: pip install 'lorakit[tune]'."
        ) from None
    return ray


def require_resources(
    machines: list[Machine], *, cpus: float, gpus: float, what: str, count: int = 1
) -> None:
    """Refuse a request that the cluster can never satisfy, instead of waiting for ever.

    Args:
        machines: Machines of the cluster.
        cpus: CPUs of one process; a process runs on one machine.
        gpus: GPUs of one process; fractions share a GPU.
        what: Name of the request and its keys, for the error.
        count: Number of processes that run at the same time.

    Raises:
        ClusterError: There are too few resources; the message names both.
    """
    places = 0
    for machine in machines:
        by_cpu = machine.cpus // cpus if cpus else float("inf")
        by_gpu = _processes_per_machine(machine.gpus, gpus) if gpus else float("inf")
        places += int(min(by_cpu, by_gpu, count))
    if places >= count:
        return
    there = "; ".join(f"{m.cpus:g} CPUs and {m.gpus:g} GPUs at {m.address}" for m in machines)
    raise ClusterError(
        f"Too few resources for {what}: got {count} x ({cpus:g} CPUs and {gpus:g} GPUs), expected "
        f"at most those of the cluster: {there}. Request less, or join a larger "
        "cluster with --address."
    )


def _processes_per_machine(there: float, each: float) -> float:
    """Return how many processes fit: a fraction of a GPU is on one GPU."""
    return int(there) * int(1 / each) if each < 1 else there // each


def _require_answer(address: str) -> None:
    """Open a connection to the address, because Ray would retry for minutes."""
    if address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address: got '{address}', an address of Ray Client, expected host:port of the "
            "cluster's head. Make this machine part of the cluster (`ray start --address=...`), "
            "or run lorakit on one that is."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"--address: got '{address}', expected host:port or auto. `ray start --head` prints "
            "the address."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"No Ray cluster answers at --address {address} ({error}). Start one there with "
            f"`ray start --head --port={port}`, or omit --address to use this machine alone."
        ) from None


def _machines(ray: Any) -> list[Machine]:
    return [
        Machine(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
