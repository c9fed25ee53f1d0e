"""The tables of trained models on docs/claims.md."""

import statistics
from collections.abc import Sequence

from benchmarks.claims.accuracy import Cell, cells, compared_runs, gaps
from benchmarks.claims.evidence import FULL_KIND, Evidence, lora, rank_cells
from benchmarks.claims.published import TABLE_5
from benchmarks.claims.quality_runs import ALL_LINEAR, EQUAL_BUDGET, FULL, QualityRun
from benchmarks.tables import table

NOT_YET = "Not measured yet: `python -m benchmarks.claims quality`."
_SHORT = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}


def short(targets: str) -> str:
    """Write modules as the paper does.

    >>> short("q_proj v_proj"), short("all-linear")
    ('q + v', 'every linear layer')
    """
    if targets == ALL_LINEAR[0]:
        return "every linear layer"
    return " + ".join(_SHORT.get(name, name) for name in targets.split())


def rank_table(evidence: Evidence) -> str:
    """Return full fine-tuning beside every rank."""
    full = evidence.cells.get(FULL_KIND)
    cells = [cell for cell in (full, *rank_cells(evidence)) if cell is not None]
    if not cells:
        return NOT_YET
    lines = [
        (
            "full fine-tuning" if cell is full else f"LoRA, r={cell.kind[1]}",
            f"{cell.example.trained_parameters:,}",
            _accuracy(cell),
            _gap_text(cell, full),
            f"{cell.example.saved_bytes / 1e6:.2f} MB",
        )
        for cell in cells
    ]
    header = ("", "trained", "accuracy", "against full, points", "saved")
    return table(header, lines)


def budget_table(evidence: Evidence) -> str:
    """Return modules of one budget, with the paper's table 5 beside them."""
    kinds = [lora(r, targets) for r, targets in EQUAL_BUDGET]
    cells = [evidence.cells[kind] for kind in kinds if kind in evidence.cells]
    if not cells:
        return NOT_YET
    lines = []
    for cell in cells:
        name = short(cell.kind[2])
        paper = TABLE_5.get(name)
        published = f"{paper[1]} / {paper[2]} (r={paper[0]})" if paper else ""
        lines.append(
            (
                name,
                str(cell.kind[1]),
                f"{cell.example.factor_parameters:,}",
                _accuracy(cell),
                _gap_text(cell, evidence.cells.get(FULL_KIND)),
                published,
            )
        )
    header = ("modules", "r", "in the factors", "accuracy", "against full, points")
    return table((*header, "paper, WikiSQL / MNLI"), lines)


def search_table(runs: Sequence[QualityRun]) -> str:
    """Return what the learning rates were chosen by."""
    searched = [
        run
        for run in runs
        if _same_length(run, runs[-1]) and (run.wanted.method, run.wanted.r, run.wanted.targets)
        in (FULL_KIND, lora(8))
    ]  # fmt: skip
    first = min((run.wanted.seed for run in searched), default=0)
    lines = [
        (
            "full" if run.wanted.method == FULL else "LoRA, r=8",
            f"{run.wanted.learning_rate:g}",
            f"{run.accuracy:.3f}",
        )
        for run in sorted(searched, key=lambda run: (run.wanted.r, run.wanted.learning_rate))
        if run.wanted.seed == first
    ]
    return table(("", "learning rate", f"accuracy, seed {first}"), lines) if lines else ""


def setting_text(runs: Sequence[QualityRun]) -> str:
    """Say what was trained on what."""
    if not runs:
        return ""
    last = runs[-1]
    alike = [run for run in runs if _same_length(run, last)]
    seeds = sorted({run.wanted.seed for run in alike})
    held_out = last.held_out_rows
    noise = 100 * statistics.mean(
        (run.accuracy * (1 - run.accuracy) / held_out) ** 0.5 for run in alike
    )
    counts = {len(cell.runs) for cell in cells(compared_runs(alike)).values()}
    notes = "" if len(counts) == 1 else " Some rows have fewer seeds so far, or more."
    if any(
        len(cell.runs) > 1 and not cell.deviation for cell in cells(compared_runs(alike)).values()
    ):
        notes += " A deviation of 0 means equal counts: each seed holds out different examples."
    return (
        "The quickstart's base and task (ten classes of docstrings): "
        f"{last.wanted.train_examples:,} training examples, {held_out} held out, "
        f"{last.wanted.epochs} epochs, seeds "
        f"{', '.join(map(str, seeds))}. A seed determines the split, the head, the factors and "
        "the order of examples. Accuracy is that of the best epoch on the held-out examples, "
        "mean ± standard deviation over the seeds; differences are computed seed by seed, their "
        "range is in parentheses. "
        f"With {held_out} examples a single accuracy is uncertain by {noise:.1f} points.{notes}"
    )


def _same_length(run: QualityRun, other: QualityRun) -> bool:
    mine, its = run.wanted, other.wanted
    return (mine.epochs, mine.train_examples) == (its.epochs, its.train_examples)


def _accuracy(cell: Cell) -> str:
    spread = f" ± {cell.deviation:.3f}" if len(cell.runs) > 1 else " (one seed)"
    return f"{cell.mean:.3f}{spread}"


def _gap_text(cell: Cell, full: Cell | None) -> str:
    if full is None or cell is full:
        return ""
    found = gaps(cell, full)
    if not found:
        return ""
    mean = sum(found) / len(found)
    return f"{mean:+.1f} ({min(found):+.1f} to {max(found):+.1f})"
