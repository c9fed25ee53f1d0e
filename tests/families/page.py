"""The table of families in docs/adapters.md, made of the recorded outcomes."""

from pathlib import Path

from tests.families.outcomes import Found

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- the families begin -->", "<!-- the families end -->"
_MARKS = {"right": "✓", "refused": "–", "not compared": "·", "wrong": "✗"}


def table(found: dict[str, Found]) -> str:
    """Return the table as Markdown, with the reasons below."""
    names = list(next(iter(found.values())).checks)
    notes: dict[str, int] = {}
    lines = [f"| family | model | modules | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for family, one in sorted(found.items()):
        cells = [_cell(one, name, notes) for name in names]
        modules = f"{one.modules}" + (f" ({one.unreached})" if one.unreached else "")
        lines.append(f"| {family} | {one.model} | {modules} | {' | '.join(cells)} |")
    right = sum(
        all(check.status in ("right", "not compared") for check in one.checks.values())
        for one in found.values()
    )
    first = (
        f"{len(found)} families, {right} of them correct in every check. ✓ correct, – refused with "
        "an error, ✗ wrong, · not compared, because transformers or PEFT fails without lorakit; "
        "numbers refer to the reasons below. In parentheses: modules that this forward pass does "
        "not call."
    )
    reasons = [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n\n".join([first, "\n".join(lines), "\n".join(reasons)])


def _cell(found: Found, name: str, notes: dict[str, int]) -> str:
    check = found.checks[name]
    mark = _MARKS[check.status]
    if not check.reason:
        return mark
    return f"{mark}<sup>{notes.setdefault(check.reason, len(notes) + 1)}</sup>"


def with_table(text: str, found: dict[str, Found]) -> str:
    """Return the page's text with the table of these outcomes between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"
