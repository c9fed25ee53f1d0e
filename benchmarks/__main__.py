"""Run every benchmark, each in a separate process, then write the page.

Options are passed on to each. A benchmark that fails does not stop the others; it is named at the
end, and the exit status is 1. Rows of a quick run, and those that --output puts elsewhere, get a
page beside them, and docs/performance.md stays as it is.
"""

import subprocess
import sys
from collections.abc import Sequence

from benchmarks import BENCHMARKS
from benchmarks.options import parse
from benchmarks.page import DOCS, write_page
from benchmarks.results import RESULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse("", __doc__, given)
    failed = run_each(BENCHMARKS, given)
    docs = DOCS if options.output.resolve() == RESULTS else options.output
    print(f"Wrote {write_page(options.output, docs)[0]}", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_each(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Run benchmarks one after the other; return the names of those that failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    return failed


if __name__ == "__main__":
    sys.exit(main())
