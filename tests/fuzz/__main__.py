"""Search for inputs that are read wrong: `python -m tests.fuzz --minutes 10`.

Cases run in forked processes, so that one which kills its process is a finding too.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.conftest  # noqa: F401  offline, with separate caches
from tests.fuzz.all_fuzzers import FUZZERS
from tests.fuzz.frame import Fuzzer, try_case

_BATCH = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="in all (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock")
    parser.add_argument("--only", choices=sorted(FUZZERS), help="one fuzzer")
    parser.add_argument("--case", type=int, help="repeat this case of --only and --seed")
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    fuzzers = [FUZZERS[name]() for name in ([options.only] if options.only else FUZZERS)]
    if options.case is not None:
        found = try_case(fuzzers[0], seed, options.case)
        print(found or "nothing found")
        return 1 if found else 0
    counts = {fuzzer.name: 0 for fuzzer in fuzzers}
    findings = 0
    end = time.monotonic() + 60 * options.minutes
    print(f"seed {seed}", flush=True)
    while time.monotonic() < end:
        for fuzzer in fuzzers:
            first = counts[fuzzer.name]
            findings += _in_child(fuzzer, seed, first)
            counts[fuzzer.name] += _BATCH
    print(f"{findings} findings in {', '.join(f'{n} {name}' for name, n in counts.items())} cases")
    return 1 if findings else 0


def _in_child(fuzzer: Fuzzer, seed: int, first: int) -> int:
    """Check a batch in a forked process; return the number of findings."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 2
        try:
            count = 0
            for number in range(first, first + _BATCH):
                os.write(writing, f"{number}\n".encode())
                found = try_case(fuzzer, seed, number)
                if found:
                    count += 1
                    print(f"\n{found}", flush=True)
            code = min(count, 100)
        finally:
            os._exit(code + 100 if code else 0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        numbers = lines.read().split()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0 or 0 < status <= 100:
        number = numbers[-1] if numbers else first
        how = f"by signal {-status}" if status < 0 else f"with exit code {status}"
        again = f"--only {fuzzer.name} --seed {seed} --case {number}"
        print(f"\nthe process ended {how}\n  again: python -m tests.fuzz {again}", flush=True)
        return 1
    return max(status - 100, 0)


if __name__ == "__main__":
    sys.exit(main())
