"""Remarks on claims, above all where ours differs; every number is computed."""

from collections.abc import Callable

import torch

from benchmarks.claims.accuracy import best, gaps
from benchmarks.claims.directions import INSIDE, INSIDE_CHANCE, TOP_A, TOP_CHANCE, TOP_UPDATE
from benchmarks.claims.evidence import FULL_KIND, Evidence, lora, ours, rank_cells, single_cells
from benchmarks.claims.published import (
    FIGURE_6_ADAPTERS,
    FIGURES,
    GPT3_BYTES,
    TOKENS_PER_S,
    Published,
)
from benchmarks.claims.quality_runs import EQUAL_BUDGET
from benchmarks.claims.quality_tables import short
from benchmarks.claims.shapes import LLAMAS
from lorakit.quickstart.run import EPOCHS, RANK

MIB, MB, GB = 2**20, 1e6, 1e9


def published(claim: str, what: str) -> Published:
    """Return a published figure by its name."""
    [found] = [one for one in FIGURES if (one.claim, one.what) == (claim, what)]
    return found


def _counts(evidence: Evidence) -> str | None:
    size = evidence.value("C3", "adapter in 16 bits, qv, r=4")
    times = evidence.value("C3", "model / adapter")
    if size is None or times is None:
        return None
    text = (
        f"The paper's {published('C3', 'adapter in 16 bits, qv, r=4').value / MB:g} MB are "
        f"{size / MIB:.1f} MiB or {size / MB:.1f} MB, and its 10,000 is rounded up from "
        f"{times:,.0f}."
    )
    file = evidence.value("C3", "adapter file, qv, r=4")
    if file is not None:
        text += f" lorakit's file has {file / MB:.1f} MB, because it trains factors in float32."
    return text


def _adam(evidence: Evidence) -> str | None:
    whole, with_lora = (evidence.value("C5", f"{name}, peak") for name in ("full", "LoRA"))
    count = evidence.value("C5", "the model")
    measured = ours(published("C5", "memory saved, measured"), evidence)
    parts = []
    if whole and with_lora and count:
        paper, paper_own = GPT3_BYTES["full"], GPT3_BYTES["LoRA"]
        parts.append(
            f"The paper's {paper / GB:,.0f} and {paper_own / GB:,.0f} GB are "
            f"{100 * (1 - paper_own / paper):.1f}% less, more than its 2/3. {paper / GB:,.0f} GB "
            f"are {paper / count:.1f} bytes per parameter; weights, gradients and the two moments "
            f"of AdamW are 8 in 16 bits alone, and our plan of the whole step has "
            f"{whole / count:.1f}. With LoRA it has {with_lora / count:.1f}: the weights, and "
            "little else."
        )
    if measured:
        parts.append(
            f"For a model of 69 million parameters in float32 with 1,024 tokens per step, LoRA "
            f"saves {measured.value:.0f}%, because activations are a large part of its memory."
        )
    return " ".join(parts) or None


def _speed(evidence: Evidence) -> str | None:
    saved = ours(published("C6", "time saved"), evidence)
    faster = ours(published("C6", "more tokens per second"), evidence)
    if saved is None or faster is None:
        return None
    lora_tokens, full_tokens = TOKENS_PER_S["LoRA"], TOKENS_PER_S["full"]
    text = (
        f"The paper's 25% are time saved: its {lora_tokens:g} against {full_tokens:g} tokens "
        f"per second are {100 * (1 - full_tokens / lora_tokens):.1f}% less time, which is "
        f"{100 * (lora_tokens / full_tokens - 1):+.1f}% throughput. Ours, with the optimizer's "
        f"step, are {saved.value:.1f}% and {faster.value:+.1f}%."
    )
    limit = ours(published("C6", "time of the frozen limit"), evidence)
    if limit:
        text += (
            f" Two products of three would be {100 * 2 / 3:.1f}% of the time; a step that trains "
            f"nothing at all takes {limit.value:.1f}% here, because norms, attention and the loss "
            "cost the same for both."
        )
    return text


def _latency(evidence: Evidence) -> str | None:
    found = {
        batch: [
            ours(published("C7", f"{how}, {batch}"), evidence) for how in ("merged", "unmerged")
        ]
        for batch in ("1 x 128", "16 x 256", "32 x 512")
    }
    complete = [(batch, *pair) for batch, pair in found.items() if all(pair)]
    if not complete:
        return None
    each = "; ".join(
        f"{batch}: {merged.value:+.1f}% merged, {unmerged.value:+.1f}% unmerged"
        for batch, merged, unmerged in complete
    )
    return (
        "The published 2% to 30% are for adapter layers, which cannot be merged; the paper has no "
        f"figure for unmerged LoRA. Ours ({each}) are for one model on a CPU. A merged model runs "
        "the same operations as the base, so its difference is measurement noise."
    )


def _quality(evidence: Evidence) -> str | None:
    full = evidence.cells.get(FULL_KIND)
    ranks = rank_cells(evidence)
    if full is None or not ranks:
        return None
    parts = []
    for cell in ranks:
        found = gaps(cell, full)
        if found:
            parts.append(f"r={cell.kind[1]} {sum(found) / len(found):+.1f}")
    text = f"Against full fine-tuning, in points: {', '.join(parts)}."
    top = best([*ranks, full])
    if top is full:
        text += " No rank reaches full fine-tuning here."
        if evidence.quickstart_gap is not None:
            text += (
                f" The quickstart's longer run (r={RANK}, {EPOCHS} epochs, more examples) has "
                f"{evidence.quickstart_gap:+.1f} points."
            )
    lowest = ours(published("C8", "r=1 against the best rank"), evidence)
    if lowest and lowest.value < published("C8", "r=1 against the best rank").value:
        text += (
            f" r=1 loses {-lowest.value:.1f} points to the best rank, more than in the paper: "
            f"the model is small, and {full.example.wanted.epochs} epochs at one learning rate "
            "for all ranks are a short training."
        )
    singles, two_or_more = single_cells(evidence), _several(evidence)
    if singles and two_or_more:
        one, several = best(singles), best(two_or_more)
        text += (
            f" At one budget the best single matrix is {short(one.kind[2])} with {one.mean:.3f}; "
            f"the best of several is {short(several.kind[2])} with {several.mean:.3f}."
        )
    return text


def _several(evidence: Evidence) -> list:
    kinds = [lora(r, targets) for r, targets in EQUAL_BUDGET]
    single = {cell.kind for cell in single_cells(evidence)}
    return [evidence.cells[kind] for kind in kinds if kind in evidence.cells.keys() - single]


def _directions(evidence: Evidence) -> str | None:
    names = (TOP_A, TOP_UPDATE, TOP_CHANCE, INSIDE, INSIDE_CHANCE)
    found = {name: evidence.value("C9", name) for name in names}
    text = ""
    if all(value is not None for value in found.values()):
        text = (
            f"The top directions of the updates share {found[TOP_UPDATE]:.2g} (those of A "
            f"{found[TOP_A]:.2g}), random ones {found[TOP_CHANCE]:.2g}; the top direction at r=8 "
            f"shares {found[INSIDE]:.2g} with all 64 of r=64, a random one "
            f"{found[INSIDE_CHANCE]:.2g}. The paper reports one layer of a model with 175 billion "
            "parameters; ours is a median over query and value of five layers, and over "
            "different seeds. "
        )
    four, most = (evidence.value("C9", f"amplification factor, r={r}") for r in (4, 64))
    if four and most:
        falls = "falls with the rank, as" if four > most else "does not fall with the rank, unlike"
        text += f"The amplification {falls} in the paper: {four:.3g} at r=4, {most:.3g} at r=64. "
    slip = _appendix_phi(4)
    return (
        text + "The paper's appendix G restates φ as (1 - d²) / p, with p = min(i, j) and d the "
        f"distance of the two subspaces; for 4 directions and themselves that is {slip:g}, "
        "where section 7.2 gives 1. It should be 1 - d² / p; lorakit computes section 7.2."
    )


def _appendix_phi(p: int) -> float:
    """Return appendix G's φ of a subspace of p directions and itself, as it is printed."""
    directions = torch.eye(2 * p, dtype=torch.float64)[:, :p]
    shared = torch.linalg.svdvals(directions.T @ directions).square().sum().item()
    distance = max(p - shared, 0.0) ** 0.5
    return (1 - distance**2) / p


def _seven_billion(evidence: Evidence) -> str | None:
    kept = evidence.value("C11", "QLoRA, kept for backward")
    checkpointed = evidence.value("C11", "QLoRA, checkpointing, kept for backward")
    base = evidence.value("C11", "QLoRA, weights of the base")
    trained = evidence.value("C11", "QLoRA, trained")
    rank = evidence.value("C11", "rank on every linear layer at 0.2 %")
    if None in (kept, checkpointed, base, trained, rank):
        return None
    layers = LLAMAS["LLaMA 7B"][2]
    paper_kept = published("C11", "QLoRA, kept for backward").value
    paper_less = published("C11", "QLoRA, checkpointing, kept for backward").value
    paper_base = published("C11", "QLoRA, weights of the base").value
    return (
        f"0.2% of the weights correspond to r={rank:.1f} on every linear layer; the paper trains "
        f"r=64, {trained:,.0f} numbers, and its figure 6 shows adapters of {FIGURE_6_ADAPTERS:.2f} "
        f"times that count. Its {paper_less / MB:g} MB with checkpointing are "
        f"{paper_kept / MB:g} / {layers}: one layer's share. The paper "
        "counts only gradients of the adapters' inputs. A step also keeps the input of every "
        f"layer, so our plan has {checkpointed / MB:,.0f} MB, and {kept / MB:,.0f} MB without "
        "checkpointing, with everything that norms, attention and MLPs save for backward. Of the "
        f"base's {paper_base / MB:,.0f} MB our plan has {base / MB:,.0f}: 4-bit layers with their "
        "scales, embeddings and output head in 16 bits. The paper does not say what else it counts."
    )


def _sixty_five_billion(evidence: Evidence) -> str | None:
    twelve = evidence.value("C12", "twelve bytes a parameter")
    peak = evidence.value("C12", "full, 16 bits, peak")
    with_lora = evidence.value("C12", "QLoRA, peak")
    count = evidence.value("C12", "the model")
    if None in (twelve, peak, with_lora, count):
        return None
    return (
        f"780 GB are 12 bytes per parameter: 2 for the weight, 2 for its gradient, 8 for two "
        f"32-bit moments, {twelve / GB:,.0f} GB for {count / GB:.1f} billion. AdamW keeps its "
        f"moments in the weights' 16 bits, so our plan of full fine-tuning has "
        f"{peak / count:.1f} bytes, {peak / GB:,.0f} GB. The plan of QLoRA has "
        f"{with_lora / GB:.1f} GB."
    )


def _truncation(evidence: Evidence) -> str | None:
    by_chance = evidence.row("C16", "error of random factors / tail of the spectrum")
    if by_chance is None:
        return None
    return (
        f"The best B for a random A has a {100 * (by_chance.p50 - 1):.1f}% larger error than the "
        "truncated SVD; the difference is small because this weight's spectrum falls slowly."
        if by_chance.p50 < 1.5
        else f"The best B for a random A has {by_chance.p50:.1f} times the truncated SVD's error."
    )


REMARKS: dict[str, Callable[[Evidence], str | None]] = {
    "C3": _counts,
    "C5": _adam,
    "C6": _speed,
    "C7": _latency,
    "C8": _quality,
    "C9": _directions,
    "C11": _seven_billion,
    "C12": _sixty_five_billion,
    "C16": _truncation,
}
