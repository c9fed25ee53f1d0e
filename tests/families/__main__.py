"""The sweep as a command: python -m tests.families [--only bert,llama] [--write] [--jobs 2]."""

import argparse
import sys
import warnings

from tests.families.outcomes import RECORDED, as_json, recorded
from tests.families.page import PAGE, with_table
from tests.families.sweep import print_chunk, swept


def main() -> int:
    """Run the sweep, print what is wrong, and write table and outcomes on request."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--write", action="store_true", help="write the outcomes and the table")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--chunk", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.chunk:
        print_chunk(options.chunk.split(","))
        return 0
    from tests.families.models import FAMILIES

    families = options.only.split(",") if options.only else list(FAMILIES)
    found, seconds = swept(families, options.jobs)
    for family, one in sorted(found.items()):
        for name, check in one.checks.items():
            if check.status != "right" and (options.only or check.status != "not compared"):
                print(f"{check.status:12}  {family:24}  {name:15}  {check.reason}")
    statuses = [{check.status for check in one.checks.values()} for one in found.values()]
    wrong = sum("wrong" in each for each in statuses)
    refused = sum("refused" in each and "wrong" not in each for each in statuses)
    slowest = sorted(seconds, key=lambda family: -seconds[family])[:5]
    print(f"{len(found)} families: {wrong} wrong somewhere, {refused} refused somewhere")
    print("slowest: " + ", ".join(f"{family} {seconds[family]:.1f} s" for family in slowest))
    if options.write:
        earlier = recorded() if options.only and RECORDED.exists() else {}
        found = {family: one for family, one in (earlier | found).items() if family in FAMILIES}
        RECORDED.write_text(as_json(found), encoding="utf-8")
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(page, found), encoding="utf-8")
        print(f"wrote {RECORDED} and the table of {PAGE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
