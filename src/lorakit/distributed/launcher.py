"""The variables that a launcher (torchrun, accelerate launch) sets in each process it starts."""

import os

from lorakit.errors import ClusterError

_LAST_PORT = 65535


def launched_processes() -> int:
    """Return the number of processes that a launcher has started, 1 without one."""
    return _number("WORLD_SIZE") or 1


def launched_rank() -> int:
    """Return the rank of this process among them; 0 if its variable is missing or wrong."""
    rank = _number("RANK") or 0
    return rank if rank < launched_processes() else 0


def require_launcher_variables() -> None:
    """Check that the processes of a launcher can find each other.

    Raises:
        ClusterError: A variable is missing or wrong.
    """
    given, count = os.environ.get("WORLD_SIZE", "1"), launched_processes()
    got = "" if given.strip().isdecimal() else f"WORLD_SIZE={given!r}"
    if count > 1:
        largest = {"RANK": count - 1, "LOCAL_RANK": count - 1, "MASTER_PORT": _LAST_PORT}
        numbers = {name: _number(name) for name in largest}
        wrong = [
            f"{name}={os.environ[name]!r}" if name in os.environ else f"no {name}"
            for name, number in numbers.items()
            if number is None or number > largest[name]
        ]
        wrong += [] if os.environ.get("MASTER_ADDR") else ["no MASTER_ADDR"]
        got = f"{', '.join(wrong)} with WORLD_SIZE={given}" if wrong else ""
    if got:
        raise ClusterError(
            f"Cannot train in the processes of a launcher: got {got} in the environment, expected "
            "the variables that torchrun and accelerate launch set. Start with one of them, or "
            "unset WORLD_SIZE to train in one process."
        )


def _number(name: str) -> int | None:
    given = os.environ.get(name, "").strip()
    return int(given) if given.isdecimal() else None
