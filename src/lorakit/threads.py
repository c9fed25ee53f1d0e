"""How the threads of a CPU wait for each other: asleep, so that a busy machine stays usable.

Each product of matrices is shared by several threads, and those that are ready first wait for the
others. By default OpenMP's threads do that in a loop that keeps their core busy. Where other
programs want the cores too, the waiting threads take the time of the one that is waited for, and a
step takes several times as long (`python -m benchmarks.busy_machine`). Asleep they cost nothing
measurable on a quiet machine. OpenMP reads the setting once, when torch is loaded.
"""

import os
import sys

_POLICY = "OMP_WAIT_POLICY"
_SETTINGS = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user may have chosen already, of OpenMP itself, GNU's and LLVM's."""


def wait_asleep() -> None:
    """Let threads wait asleep in this process and those it starts; the user's choice goes first.

    This has an effect only before torch is loaded.
    """
    if not _is_chosen():
        os.environ[_POLICY] = "passive"


def spinning_note() -> str | None:
    """Return what to tell a user whose threads wait in a loop, or None if they do not."""
    if _is_chosen() or sys.platform != "linux":
        return None
    return (
        "CPU threads wait for each other in a loop, which makes steps several times slower while "
        "other programs use the machine. Set OMP_WAIT_POLICY=passive before torch is imported."
    )


def _is_chosen() -> bool:
    return any(name in os.environ for name in _SETTINGS)
