"""Write docs/claims.md from the CSV files alone."""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims import BENCHMARK, quality_tables
from benchmarks.claims.evidence import (
    AGREES,
    DIFFERS,
    MISSING,
    Evidence,
    Ours,
    of_row,
    ours,
    verdict,
)
from benchmarks.claims.published import CLAIMS, FIGURES, Claim, Published
from benchmarks.claims.quality_runs import FILE
from benchmarks.claims.remarks import REMARKS
from benchmarks.page import DOCS
from benchmarks.results import RESULTS, Origin, matching
from benchmarks.tables import table

PAGE_NAME = "claims.md"
_DIGITS = 5
_SMALL_PERCENT = 2
_HEAD = """# The papers' claims, measured again

The claims of the papers on LoRA and QLoRA, and what lorakit finds. `make claims` measures and writes this page; `python -m benchmarks.claims --page` only writes it, from the rows in [`{results}`]({results}). Published figures are from the named source; all others are computed or measured by the command beside them.

*agrees* means equal up to the rounding of the published figure, or on the right side of a bound. *within the spread* means that ours differs from the figure by less than our runs differ from each other. Bytes are decimal: 1 GB is 10⁹.
"""  # noqa: E501


def page_text(evidence: Evidence, results: str = "../benchmarks/results") -> str:
    """Return the page.

    Args:
        evidence: All rows.
        results: Path of the CSV files, relative to the page.
    """
    parts = [_HEAD.format(results=results).rstrip(), _origin_text(evidence, results)]
    parts += ["## The claims", claim_table(evidence)]
    parts += ["## Where ours differs, and why", remarks_text(evidence)]
    parts += ["## Full fine-tuning and LoRA", quality_tables.setting_text(evidence.runs)]
    parts += [quality_tables.rank_table(evidence), _search_text(evidence)]
    parts += ["## One budget, different matrices", _BUDGET, quality_tables.budget_table(evidence)]
    parts += ["## All figures", figure_table(evidence)]
    return "\n\n".join(part for part in parts if part) + "\n"


_BUDGET = (
    "The shape of the LoRA paper's tables 5 and 6: one matrix at a high rank, two at about half, "
    "four at about a quarter. q and o are 256 × 256 in this model, k and v 128 × 256; with "
    "these ranks, all but the last train the same number of parameters."
)


def _search_text(evidence: Evidence) -> str:
    if not evidence.runs:
        return ""
    found = quality_tables.search_table(evidence.runs)
    about = (
        "The learning rate of each method is the best of three on one seed, and the same at every "
        "rank and seed; lora_alpha is twice the rank."
    )
    return f"{about}\n\n{found}"


def claim_table(evidence: Evidence) -> str:
    """Return a line for each claim."""
    lines = []
    for claim in CLAIMS:
        figures = [figure for figure in FIGURES if figure.claim == claim.name]
        in_table = [figure for figure in figures if figure.is_shown]
        found = {figure: ours(figure, evidence) for figure in figures}
        lines.append(
            (
                claim.name,
                f"{claim.text} *{claim.source}*",
                "<br>".join(f"{one.what}: {published_text(one)}" for one in in_table),
                "<br>".join(own_text(one, found[one]) for one in in_table),
                f"{claim.how}<br>{_commands(claim)}",
                _verdicts([verdict(one, found[one]) for one in figures]),
            )
        )
    return table(("", "claim", "published", "ours", "how", "verdict"), lines)


def _commands(claim: Claim) -> str:
    return "<br>".join(f"`{command}`" for command in claim.command.split("; "))


def _verdicts(found: Sequence[str]) -> str:
    """Return one word for a claim: the worst of its figures', and of how many."""
    for worst in (DIFFERS, MISSING):
        if worst in found:
            count = found.count(worst)
            return worst if count == len(found) else f"{worst} in {count} of {len(found)}"
    other = [one for one in found if one != AGREES]
    return other[0] if other else AGREES


def figure_table(evidence: Evidence) -> str:
    """Return every figure, also ours that no paper has."""
    lines = []
    for claim in CLAIMS:
        figures = [figure for figure in FIGURES if figure.claim == claim.name]
        for figure in figures:
            found = ours(figure, evidence)
            lines.append(
                (
                    claim.name,
                    figure.what,
                    published_text(figure),
                    own_text(figure, found) if found else "",
                    found.where if found else "",
                    verdict(figure, found),
                )
            )
        known = {figure.what for figure in figures}
        for row in matching(evidence.rows, benchmark=BENCHMARK, variant=claim.name):
            if row.measure not in known:
                known.add(row.measure)
                value = of_row(evidence.row(claim.name, row.measure) or row)
                text = number_text(value, row.unit)
                lines.append((claim.name, row.measure, "", text, value.where, ""))
    return table(("", "figure", "published", "ours", "of", "verdict"), lines)


def published_text(figure: Published) -> str:
    """Return the published figure with its unit and the side it bounds."""
    sign = {"≤": "at most ", "≥": "at least "}.get(figure.relation, "")
    return sign + number_text(Ours(figure.value), figure.unit)


def own_text(figure: Published, found: Ours | None) -> str:
    """Return our figure with its unit and spread."""
    return MISSING if found is None else number_text(found, figure.unit)


def number_text(found: Ours, unit: str) -> str:
    """Write a number with its unit, and its spread in brackets.

    >>> number_text(Ours(18874368.0), "parameters"), number_text(Ours(3.5e11), "B")
    ('18,874,368 parameters', '350 GB')
    >>> number_text(Ours(-1.25, -2.0, 0.5), "points")
    '-1.2 points (-2.0 to +0.5)'
    """
    if found.low is None or found.high is None or found.low == found.high:
        return _with_unit(found.value, unit)
    value, low, high = (
        f"{one:.1f} %" if unit == "%" else f"{one:.3g}" if not unit else _with_unit(one, unit)
        for one in (found.value, found.low, found.high)
    )
    return f"{value} ({low.removesuffix(f' {unit}')} to {high.removesuffix(f' {unit}')})"


def _with_unit(value: float, unit: str) -> str:
    if unit == "parameters":
        return f"{value:,.0f} parameters"
    if unit == "B":
        size, name = next(pair for pair in _SIZES if value >= pair[0] or pair[0] == 1)
        return (
            f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"
        )
    if unit == "×":
        return f"{value:,.0f} ×"
    if unit == "points":
        return f"{value:+.1f} points"
    digits = 3 if unit == "%" and abs(value) >= _SMALL_PERCENT else _DIGITS
    return f"{value:.{digits}g} {unit}".rstrip()


_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def remarks_text(evidence: Evidence) -> str:
    """Return the remarks on each measured claim."""
    lines = []
    for claim in CLAIMS:
        text = REMARKS[claim.name](evidence) if claim.name in REMARKS else None
        if text:
            lines.append(f"- **{claim.name}.** {text}")
    return "\n".join(lines) or "Nothing was measured yet."


def _origin_text(evidence: Evidence, results: str) -> str:
    origins: list[Origin] = [row.origin for row in matching(evidence.rows, benchmark=BENCHMARK)]
    origins += [run.origin for run in evidence.runs]
    if not origins:
        return "Nothing was measured yet: `make claims` does it."
    newest = max(origins, key=lambda origin: origin.date)
    devices = "; ".join(dict.fromkeys(origin.device for origin in origins))
    commits = ", ".join(dict.fromkeys(origin.commit for origin in origins))
    dates = sorted({origin.date for origin in origins})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{devices}; torch {newest.torch}, transformers {newest.transformers}, lorakit "
        f"{newest.lorakit}; commit {commits}; {days}. Accuracies are in [`{FILE}`]"
        f"({results}/{FILE}); the time, memory and latency of a step are those of "
        "[performance.md](performance.md)."
    )


def write_page(results: Path = RESULTS, docs: Path = DOCS) -> Path:
    """Write the page.

    Args:
        results: Directory of the CSV files.
        docs: Directory of the page.

    Returns: The page.
    """
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / PAGE_NAME
    link = Path(os.path.relpath(results, docs)).as_posix()
    page.write_text(page_text(Evidence.read(results), link), encoding="utf-8")
    return page
