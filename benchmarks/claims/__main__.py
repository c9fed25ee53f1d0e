"""Measure or compute what the papers claim, and write docs/claims.md.

Sections: counts, arithmetic, plans, quality, directions; all of them where none is named. A
section that fails does not stop the others; it is named at the end, and the exit status is 1.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from benchmarks.claims import SECTIONS, arithmetic, counts, directions, plans, quality
from benchmarks.claims.page import write_page
from benchmarks.options import Options, options_of, options_parser
from benchmarks.page import DOCS
from benchmarks.results import RESULTS

RUN: dict[str, Callable[[Options], object]] = {
    "counts": counts.count,
    "arithmetic": arithmetic.compute,
    "plans": plans.plan_all,
    "quality": quality.run_grid,
    "directions": directions.compare,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, write the page and return the exit status."""
    parser = options_parser("claims", __doc__ or "")
    parser.add_argument("sections", nargs="*", type=_section, metavar="SECTION")
    parser.add_argument("--page", action="store_true", help="write the page from the rows alone")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    failed = [] if found.page else run_sections(found.sections or SECTIONS, options)
    docs = DOCS if options.output.resolve() == RESULTS else options.output
    print(f"Wrote {write_page(options.output, docs)}", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_sections(names: Sequence[str], options: Options) -> list[str]:
    """Run sections one after the other; return the names of those that failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        try:
            RUN[name](options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    return failed


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(
            f"no section is called {name!r}; sections: {', '.join(SECTIONS)}"
        )
    return name


if __name__ == "__main__":
    sys.exit(main())
