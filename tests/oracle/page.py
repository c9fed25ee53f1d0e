"""The table of docs/adapters.md, made of the rows that tests/interop/test_oracle.py runs.

PYTHONPATH=tests python -m oracle.page
"""

from itertools import groupby
from pathlib import Path

from oracle.features import FEATURES
from oracle.models import KINDS
from oracle.operations import OPERATIONS
from oracle.outcomes import LORAKIT, PEFT, ROWS, Outcome, Row, has_file, outcome

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
_MARKS = {None: "✓", "refuses": "–", "differs": "✗"}


def table() -> str:
    """Return the tables as Markdown: one for each kind of layer, and the reasons below."""
    notes: dict[tuple[str, str], int] = {}
    parts = [
        f"{len(ROWS)} rows. Each cell has lorakit first and PEFT second: ✓ correct, – refused with "
        "an error, ✗ wrong, ~ not compared, because lorakit refuses; · there is no file to load. "
        "Numbers refer to the reasons below."
    ]
    for kind, rows in groupby(ROWS, key=lambda row: row.kind):
        parts.append(f"### {KINDS[kind].title}\n\n{_of_kind(list(rows), notes)}")
    reasons = [f"{n}. {tool}: {reason}." for (tool, reason), n in notes.items()]
    return "\n\n".join([*parts, "### Reasons", "\n".join(reasons)])


def _of_kind(rows: list[Row], notes: dict[tuple[str, str], int]) -> str:
    titles = [operation.title for operation in OPERATIONS.values()]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for feature, cells in groupby(rows, key=lambda row: row.feature):
        marks = [_cell(row, notes) for row in cells]
        lines.append(f"| {FEATURES[feature].title} | {' | '.join(marks)} |")
    return "\n".join(lines)


def _cell(row: Row, notes: dict[tuple[str, str], int]) -> str:
    if not has_file(row):
        return "·"
    mine, theirs = outcome(LORAKIT, row), outcome(PEFT, row)
    first = _mark("lorakit", mine, notes)
    not_compared = mine is not None and theirs is None
    return f"{first} {'~' if not_compared else _mark('PEFT', theirs, notes)}"


def _mark(tool: str, found: Outcome | None, notes: dict[tuple[str, str], int]) -> str:
    mark = _MARKS[None if found is None else found.what]
    if found is None:
        return mark
    number = notes.setdefault((tool, found.reason), len(notes) + 1)
    return f"{mark}<sup>{number}</sup>"


def with_table(text: str) -> str:
    """Return the page's text with the table of today between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
