"""What every fuzzer shares: cases from seeds, bounds on time and memory, what counts as a finding.

A fuzzer is a class with the members of `Fuzzer`. A case is made from a seed alone, so that
`python -m tests.fuzz --only NAME --seed S --case N` repeats it.
"""

import random
import resource
import signal
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorakit.errors import LorakitError

MOST_CHARACTERS = 4000
"""Most characters of a message: what a terminal shows."""


class Fuzzer(Protocol):
    """One kind of input."""

    name: str
    """On the command line."""

    most_s: float
    """Bound on the seconds that one check may take on a busy machine."""

    most_bytes: int
    """Bound on the memory that one check may take on top of what the process has."""

    def case(self, rng: random.Random, folder: Path) -> Any:
        """Return one case; its `repr` says what was done.

        Args:
            rng: The only source of chance.
            folder: Empty; files of the case go here, and it is removed after the check.
        """

    def check(self, case: Any) -> None:
        """Raise `FindingError`, or anything else, where the product is wrong."""


class FindingError(AssertionError):
    """The product did something that it must not do."""


@dataclass(frozen=True)
class Found:
    """A finding, and how to repeat it."""

    fuzzer: str
    seed: int
    number: int
    case: str
    problem: str

    def __str__(self) -> str:
        again = f"python -m tests.fuzz --only {self.fuzzer} --seed {self.seed} --case {self.number}"
        return f"{self.problem}\n  case: {self.case}\n  again: {again}"


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the LorakitError it raises where its message is a good one.

    Raises:
        FindingError: It raises anything else, or a message that a user cannot read.
    """
    try:
        return call()
    except LorakitError as error:
        text = str(error)
        # Newlines separate the problems of a configuration.
        controls = {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"}
        if not text.strip() or len(text) > MOST_CHARACTERS or controls or "Traceback" in text:
            raise FindingError(f"message of {len(text)} characters: {text[:300]!r}") from error
        return error
    except (FindingError, TooSlowError):
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise FindingError(
            f"{type(error).__name__} at {where.filename}:{where.lineno}: {str(error)[:300]!r}"
        ) from error


class TooSlowError(FindingError):
    """A check exceeded its bound."""


@contextmanager
def bounded(most_s: float, most_bytes: int) -> Iterator[None]:
    """Stop the block at a bound on its time, and let it fail to get memory beyond another one."""

    def stop(*_: Any) -> None:
        raise TooSlowError(f"more than {most_s:g} s")

    old_limit = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + most_bytes
    old_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, most_s)
    resource.setrlimit(resource.RLIMIT_AS, (limit, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)


def try_case(fuzzer: Fuzzer, seed: int, number: int) -> Found | None:
    """Make one case and check it; return the finding, if any."""
    rng = random.Random(f"{fuzzer.name} {seed} {number}")
    with tempfile.TemporaryDirectory(prefix="lorakit-fuzz-", ignore_cleanup_errors=True) as folder:
        case = fuzzer.case(rng, Path(folder))
        began = time.monotonic()
        try:
            with bounded(fuzzer.most_s, fuzzer.most_bytes):
                fuzzer.check(case)
        except Exception as error:
            problem = str(error) if isinstance(error, FindingError) else traceback.format_exc()
            problem = f"{problem} ({time.monotonic() - began:.1f} s)"
            return Found(fuzzer.name, seed, number, repr(case)[:2000], problem)
    return None


def try_cases(fuzzer: Fuzzer, seed: int, count: int) -> list[Found]:
    """Check the cases 0 to count - 1 of a seed in this process."""
    found = (try_case(fuzzer, seed, number) for number in range(count))
    return [one for one in found if one is not None]
