"""Running the checks: one family at a time, in separate processes for many."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.families.outcomes import CHECK_NAMES, Found, Outcome, as_json, from_json

LIMIT_S = 60
"""Seconds a family may take before it counts as hung, on a busy machine."""
MEMORY_BYTES = 12 * 2**30
"""Address space of a process; a tiny model that needs more is not tiny, or loops."""
CHUNK = 30
ROOT = Path(__file__).parents[2]


def checked(family: str) -> Found:
    """Run every check on one family, in this process."""
    from tests.families.case import Case
    from tests.families.checks import CHECKS, outcome
    from tests.families.models import FAMILIES

    from lorakit.injection.state import adapted_layers

    found = Found(FAMILIES[family])
    with tempfile.TemporaryDirectory() as directory:
        case = Case(family, Path(directory))
        for name, check in CHECKS.items():
            found.checks[name] = outcome(check, case)
        if found.checks["forward"].status == "right":
            found.modules = sum(1 for _ in adapted_layers(case.adapted))
        found.unreached = case.unreached
    return found


def print_chunk(families: Sequence[str]) -> None:
    """Check families one after the other, and print a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for family in families:
        began = time.monotonic()
        with _alarm():
            found = _checked_or_failed(family)
        line = {"family": family, "seconds": time.monotonic() - began}
        print(json.dumps(line | {"found": as_json({family: found})}), flush=True)


def _checked_or_failed(family: str) -> Found:
    from tests.families.models import FAMILIES

    try:
        return checked(family)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return _failed(FAMILIES[family], reason)


def _failed(model: str, reason: str) -> Found:
    return Found(model, checks=dict.fromkeys(CHECK_NAMES, Outcome("wrong", reason[:400])))


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"over {LIMIT_S} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def swept(families: Sequence[str], jobs: int) -> tuple[dict[str, Found], dict[str, float]]:
    """Check families in processes.

    Returns: What each came to, and the seconds it took.
    """
    # Families that follow each other in the alphabet share modules of transformers.
    chunks = [list(families[at : at + CHUNK]) for at in range(0, len(families), CHUNK)]
    found: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for some, took in pool.map(_in_process, chunks):
            found |= some
            seconds |= took
    return found, seconds


def _in_process(families: list[str]) -> tuple[dict[str, Found], dict[str, float]]:
    """Check a chunk; after a crash, go on behind the family that it happened in."""
    found: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    left = families
    while left:
        command = [sys.executable, "-m", "tests.families", "--chunk", ",".join(left)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                if line.startswith("{"):
                    one = json.loads(line)
                    found |= from_json(one["found"])
                    seconds[one["family"]] = one["seconds"]
                    print(f"{one['seconds']:5.1f} s  {one['family']}", file=sys.stderr, flush=True)
        left = [family for family in left if family not in found]
        if left and process.returncode:
            reason = f"the process ended with {process.returncode}"
            found[left[0]] = _failed("unknown", reason)
            left = left[1:]
    return found, seconds
