"""How the threads of a CPU wait for each other: in a loop for a moment, then asleep.

Each product of matrices is shared by several threads, and those that are ready first wait for the
others. GNU's OpenMP, which torch has on Linux, lets them do that in a loop for some milliseconds.
Where other programs want the cores too, the waiting threads take the time of the one that is
waited for, and a step takes much longer. Asleep at once, as OMP_WAIT_POLICY=passive has it, costs a
quiet machine time, since each thread has to be woken for each product. A short loop costs nothing
there and gives the cores away soon (`python -m benchmarks.busy_machine`). OpenMP reads the setting
once, when torch is loaded.
"""

import os
import sys

SPIN_COUNT = "10000"
"""How often a thread looks before it sleeps, some 0.1 ms; GNU's own default is 300,000."""

_VARIABLE = "GOMP_SPINCOUNT"
_SETTINGS = ("OMP_WAIT_POLICY", _VARIABLE, "KMP_BLOCKTIME")
"""Variables by which a user may have chosen already, of OpenMP itself, GNU's and LLVM's."""


def wait_briefly() -> None:
    """Let threads wait in a loop for a moment only, in this process and those it starts.

    The user's choice goes first. This has an effect only before torch is loaded.
    """
    if not _is_chosen():
        os.environ[_VARIABLE] = SPIN_COUNT


def spinning_note() -> str | None:
    """Return what to tell a user whose threads wait in a loop for long, or None."""
    if _is_chosen() or sys.platform != "linux":
        return None
    return (
        "CPU threads wait for each other in a loop, which makes steps slower while other programs "
        f"use the machine. Set {_VARIABLE}={SPIN_COUNT} before torch is imported."
    )


def _is_chosen() -> bool:
    return any(name in os.environ for name in _SETTINGS)
