"""Environment variables to set before torch is loaded, or before it compiles anything.

Waiting CPU threads spin briefly, then sleep. Several threads share each matrix product, and those
that finish first wait for the others. GNU's OpenMP, which torch uses on Linux, lets them spin for
some milliseconds. If other programs need the cores, the spinning threads take time from the thread
they wait for, and a step takes much longer. Sleeping immediately (OMP_WAIT_POLICY=passive) costs
time on an idle machine, since each thread must be woken for each product. Spinning briefly costs
less there and frees the cores soon (`python -m benchmarks.busy_machine` measures it).

Compiled code has a directory for each instruction set. torch 2.13 uses one directory for all, and
its keys do not tell them apart. Code written for vectors of 8 numbers and compiled for vectors of
16 writes past the end of its arrays.
"""

import getpass
import os
import re
import sys
import tempfile

SPIN_COUNT = "10000"
"""Number of spins before a thread sleeps, about 0.1 ms; GNU's default is 300,000."""

_VARIABLE = "GOMP_SPINCOUNT"
_SETTINGS = ("OMP_WAIT_POLICY", _VARIABLE, "KMP_BLOCKTIME")
"""Variables with which users choose the behaviour: OpenMP's, GNU's and LLVM's."""

_CAPABILITY, _DIRECTORY = "ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR"


def limit_spinning() -> None:
    """Let waiting threads spin only briefly, in this process and its children.

    Keeps the user's choice if there is one. Takes effect only before torch is loaded.
    """
    if not _is_set_by_user():
        os.environ[_VARIABLE] = SPIN_COUNT


def spinning_note() -> str | None:
    """Return a note for users whose waiting threads spin for long, or None."""
    if _is_set_by_user() or sys.platform != "linux":
        return None
    return (
        "CPU threads spin while they wait for each other, which makes steps slower while other "
        f"programs use the machine. Set {_VARIABLE}={SPIN_COUNT} before torch is imported."
    )


def separate_inductor_cache() -> None:
    """Use another directory if the environment names the instruction set that torch shall use.

    Keeps the user's directory if there is one. Takes effect only before anything is compiled.
    """
    capability = re.sub(r"\W", "", os.environ.get(_CAPABILITY, ""))
    if capability and _DIRECTORY not in os.environ:
        name = f"torchinductor_{getpass.getuser()}_{capability}"
        os.environ[_DIRECTORY] = os.path.join(tempfile.gettempdir(), name)


def _is_set_by_user() -> bool:
    return any(name in os.environ for name in _SETTINGS)
