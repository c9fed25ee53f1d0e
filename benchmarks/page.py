"""Write docs/performance.md, the machines' pages and their charts from the CSV files alone."""

import argparse
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import BENCHMARKS, charts, plan_tables, quantized_tables, serving_tables, tables
from benchmarks.results import RESULTS, ROOT, Row, matching, read_rows

DOCS = ROOT / "docs"
PAGE_NAME = "performance.md"
MACHINES = Path("performance")
IMAGES = Path("images") / "performance"
Label = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        about: What was measured; no numbers.
        benchmark: Whose rows it shows.
        table: Makes its tables.
        draw: Draws its chart, if it has one.
        image: First part of the chart's file name.
        split: Says which rows belong into one table and chart; None puts all into one.
    """

    title: str
    about: str
    benchmark: str
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row]], Figure] | None = None
    image: str = ""
    split: Callable[[Row], Label] | None = None


@dataclass(frozen=True)
class Block:
    """A table of a section and the chart beside it.

    Attributes:
        section: Where it stands.
        label: Which of the section's blocks it is, "" for the only one.
        table: Its tables, as Markdown.
        rows: What they show.
        image: Path of the chart below the page's directory, or None.
    """

    section: Section
    label: str
    table: str
    rows: list[Row]
    image: Path | None


def _model(row: Row) -> Label:
    return tables.plain_shape(row.shape), row.dtype, f"r={row.r}"


def _model_of_any_rank(row: Row) -> Label:
    return tables.plain_shape(row.shape), row.dtype, f"dropout {row.dropout:g}"


def _dtype(row: Row) -> Label:
    return row.dtype, f"r={row.r}"


SECTIONS = (
    Section(
        "Time of a training step",
        "Forward and backward of a model whose linear layers all carry an update, and the same "
        "with a step of fused AdamW.",
        "step",
        tables.step_table,
        charts.step_chart,
        "step",
    ),
    Section(
        "Memory of a training step",
        "Bytes that autograd keeps between forward and backward, each storage once; how far memory "
        "rises during forward, backward and the optimizer's step (on a CPU, without buffers that a "
        "library takes from the system itself); and that peak with weights and optimizer state.",
        "step",
        tables.bytes_table,
        charts.bytes_chart,
        "memory",
    ),
    Section(
        "A step on a quantised base",
        "Forward and backward with an update on every linear layer. The dense base, and that of "
        "the limit, hold the dequantised weights; all compute in the dtype of the heading. PEFT "
        "runs on bitsandbytes' layers. Bits per parameter are those of the quantised layers' "
        "storages, scales and code books included.",
        "qlora",
        quantized_tables.qlora_table,
    ),
    Section(
        "A magnitude (DoRA)",
        "A training step with an update on every linear layer, and the same with a magnitude in "
        "each of them, against plain LoRA with the same dropout.",
        "dora",
        tables.dropout_table,
    ),
    Section(
        "The frozen part once",
        "A training step that adapts all layers, the upper half and the upper quarter; the layers "
        "below are computed, or their output is read from disk as in every epoch but the first.",
        "frozen_part",
        tables.dropout_table,
    ),
    Section(
        "Other kinds of layers",
        "One layer alone, forward and backward, its input's gradient included. For the fused "
        "matrix the updates are those of two parts of three, and of the whole matrix.",
        "layer_kinds",
        tables.dropout_table,
    ),
    Section(
        "A busy machine",
        "A training step while nothing else runs, and while two more processes compute all the "
        "time, by how threads wait for each other; the ratio is to threads that wait in a loop, "
        "OpenMP's default. The command line lets them wait in a short loop, then asleep.",
        "busy_machine",
        tables.busy_table,
    ),
    Section(
        "Memory while loading",
        "Peak of resident memory of a process that loads a checkpoint of random weights, the "
        "libraries it imports included.",
        "loading",
        quantized_tables.loading_table,
    ),
    Section(
        "Memory of a search",
        "Largest sum of the proportional share of memory (PSS) of all processes that run trials, "
        "the libraries they import included. The bound is one base, and four times what a single "
        "trial's process has beside its base: libraries, adapter, optimizer and activations.",
        "search_memory",
        quantized_tables.search_table,
    ),
    Section(
        "The memory plan",
        "A step planned on fake tensors, and the same step of the same trainer on the same batch, "
        "its storages counted on real ones. Saved is what forward leaves for backward; the peak is "
        "that of all tensors. Resident is how far the process rises above what it takes with its "
        "libraries alone; it includes what torch's libraries and the allocator keep.",
        "memory_plan",
        plan_tables.plan_table,
    ),
    Section(
        "Batches of like length",
        "The quickstart's model, trained on its docstrings with both orders and three seeds: the "
        "median over the seeds, its spread, and the ratio to random batches of the same seed. "
        "Processor time is that of all threads.",
        "batches_of_like_length",
        tables.like_length_table,
    ),
    Section(
        "Latency of forward",
        "The batch sizes of table 1 of [Hu et al. 2021](https://arxiv.org/abs/2106.09685), logits "
        "of the last position alone. A number after the colon of a model's name is the number of "
        "its blocks.",
        "latency",
        tables.latency_table,
    ),
    Section(
        "Adding, loading and switching adapters",
        "Adapters of one size, loaded one after the other into one model from files that the "
        "system's cache holds. A late adapter is compared with the same library's second.",
        "switching",
        tables.injection_table,
        charts.loading_chart,
        "loading",
        _model,
    ),
    Section(
        "Decoding with an adapter for each row",
        "Tokens per second of a whole batch, one token at a time after a prompt, against the base "
        "model without adapters on the same batch.",
        "rows",
        tables.decode_table,
        charts.decode_chart,
        "decoding",
        _model,
    ),
    Section(
        "Decoding on a base in 4 bits",
        "Tokens per second of a whole batch, one token at a time after a prompt, with an adapter "
        "that is not merged. The dense base holds the dequantised weights in the dtype of the "
        "heading. The products of the 4-bit base are computed with a buffer of dequantised values, "
        "and with the codes as they are stored. `ops/quantized.py` uses the codes up to the number "
        "of tokens where that ends to be faster.",
        "decode_4bit",
        quantized_tables.decode_4bit_table,
    ),
    Section(
        "A server",
        "The engine of `lorakit serve` in one process. A decode step is one in which all rows are "
        "decoding. Mixed lengths are requests that are there at once: the engine, `generate` in "
        "padded batches in the order of arrival, and, with the first of the requests alone, "
        "transformers' continuous batching without adapters and PEFT one request at a time. In a "
        "closed loop so many requests are under way at each moment; in an open loop they arrive at "
        "random moments (Poisson). Percentiles are over all requests, or all tokens, of one run. A "
        "load is that of an adapter while answers are decoded, in steps by which they end later.",
        "serving",
        serving_tables.serving_table,
    ),
    Section(
        "Growth",
        "Forward and backward, and bytes saved between them, as one size grows; ratios are to the "
        "frozen limit.",
        "growth",
        tables.growth_table,
        charts.growth_chart,
        "growth",
        _model_of_any_rank,
    ),
    Section(
        "Bracketing",
        "One layer, computed as x W0ᵀ + s (x Aᵀ) Bᵀ (factored) and as x (W0 + s B A)ᵀ with the sum "
        "formed in each step (formed). Counting products, the two meet at in·out / (in + out) "
        "tokens whatever the rank "
        "([Cherniuk et al. 2023](https://arxiv.org/abs/2312.03415)).",
        "bracketing",
        tables.bracketing_table,
        charts.bracketing_chart,
        "bracketing",
        _dtype,
    ),
    Section(
        "Thin products",
        "The products of the low-rank path in C against torch's, 1024 tokens; below 1 the C is "
        "quicker. `ops/skinny.py` runs it up to the ranks where that ends.",
        "thin_products",
        quantized_tables.thin_table,
    ),
    Section(
        "Ways of dropping",
        "Dropout of an activation, alone and in front of the projection to the rank.",
        "dropout_ways",
        tables.dropout_table,
    ),
)

_HEAD = """# Performance, measured

What training, inference and the handling of adapters cost with lorakit, against the frozen limit, full fine-tuning, PEFT and loralib. Each machine has a page with all its numbers and charts.
"""  # noqa: E501

_METHOD = """## How it is measured

`make bench` measures and writes these pages; `python -m benchmarks.page` writes them from the rows in [`{results}`]({results}) alone.

Variants take turns, and a ratio is taken inside a round. A cell shows the median over the rounds and, in brackets, the 20th and 80th percentile; bytes are counts and need neither; an empty cell was not measured. In training, inference and decoding all variants have the same base weights, adapters and batch, and one with an adapter is timed only if its outputs, or its loss and gradients, are lorakit's up to rounding.

- *limit*, the frozen limit: forward and the gradients of activations, with nothing trained.
- *full*: full fine-tuning.
- *lorakit*: one autograd node for each adapted layer. *lorakit+mlp*, the default of `add_adapter`: one for each MLP of a known form.
- *peft* with factors in the dtype of the base; *peft, float32 factors* is its default for a base in half precision.
- *loralib*: its `Linear` instead of each adapted layer.
"""  # noqa: E501

_NO_ROWS = "There are no rows yet: `make bench` makes them."


def page_text(rows: Iterable[Row], results: str = "../benchmarks/results") -> str:
    """Return the first page: the goals met on each machine, and how all is measured.

    Args:
        rows: Rows of all benchmarks.
        results: Where the CSV files lie, seen from the page.
    """
    devices = by_device(rows)
    links = {device: f"[{device}]({machine_place(device).as_posix()})" for device in devices}
    lines = [
        (links[device], *tables.goals_met(device_rows, device))
        for device, device_rows in devices.items()
    ]
    summary = tables.table(("machine", "goals met", "missed"), lines) if lines else _NO_ROWS
    method = _METHOD.format(results=results)
    return "\n\n".join([_HEAD.rstrip(), summary, method.rstrip()]) + "\n"


def machine_text(device: str, device_rows: Sequence[Row]) -> str:
    """Return the page of one machine."""
    parts = [f"# {device}", _how(device_rows), "## Goals", tables.goal_table(device_rows, device)]
    before = None
    for block in blocks(device, device_rows):
        if block.section is not before:
            parts += [f"## {block.section.title}", block.section.about]
            before = block.section
        if block.label:
            parts.append(f"**{block.label}**")
        if block.image:
            parts.append(f"![{block.section.title}](../{block.image.as_posix()})")
        parts.append(block.table)
    return "\n\n".join(parts) + "\n"


def machine_place(device: str) -> Path:
    """Return the path of a machine's page below the directory of the first one."""
    return MACHINES / f"{_slug(device)}.md"


def by_device(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each device, the one measured last first."""
    devices: dict[str, list[Row]] = {}
    for row in rows:
        devices.setdefault(row.origin.device, []).append(row)
    return dict(
        sorted(
            devices.items(),
            key=lambda item: max(row.origin.date for row in item[1]),
            reverse=True,
        )
    )


def blocks(device: str, device_rows: Sequence[Row]) -> Iterator[Block]:
    """Yield the blocks of one device that have rows."""
    for section in SECTIONS:
        rows = matching(device_rows, benchmark=section.benchmark)
        split = section.split or (lambda _row: ())
        for label, group in tables.grouped(rows, split):
            table = section.table(group)
            if not table:
                continue
            image = None
            if section.draw:
                name = "-".join([section.image, *map(_slug, map(str, label))])
                image = IMAGES / _slug(device) / f"{name}.svg"
            yield Block(section, ", ".join(map(str, label)), table, group, image)


def _how(device_rows: Sequence[Row]) -> str:
    """Say with which versions, when and by which commands rows were measured."""
    origins = [row.origin for row in device_rows]
    versions = []
    for package in ("torch", "transformers", "peft", "lorakit"):
        found = dict.fromkeys(getattr(origin, package) for origin in origins)
        versions += [f"{package} {' and '.join(filter(None, found))}"] if any(found) else []
    commits = ", ".join(dict.fromkeys(origin.commit for origin in origins))
    dates = sorted({origin.date for origin in origins})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    rounds = sorted({row.rounds for row in device_rows if row.rounds > 1})
    counts = "" if not rounds else f", {' and '.join(map(str, rounds))} rounds"
    flags = " --device cuda" if "CUDA" in origins[0].device else ""
    measured = [name for name in BENCHMARKS if matching(device_rows, benchmark=name)]
    commands = "\n".join(f"python -m benchmarks.{name}{flags}" for name in measured)
    return f"{', '.join(versions)}; commit {commits}; {days}{counts}.\n\n```bash\n{commands}\n```"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_page(results: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write the pages and their charts; those that no row stands for any more are removed.

    Args:
        results: Directory of the CSV files.
        docs: Directory of the first page.

    Returns: What was written.
    """
    rows = read_rows(BENCHMARKS, results)
    for folder in (docs / IMAGES, docs / MACHINES):
        shutil.rmtree(folder, ignore_errors=True)
    (docs / MACHINES).mkdir(parents=True)
    page = docs / PAGE_NAME
    link = Path(os.path.relpath(results, docs)).as_posix()
    page.write_text(page_text(rows, link), encoding="utf-8")
    written = [page]
    with charts.style():
        for device, device_rows in by_device(rows).items():
            written.append(docs / machine_place(device))
            written[-1].write_text(machine_text(device, device_rows), encoding="utf-8")
            for block in blocks(device, device_rows):
                if block.image and block.section.draw:
                    figure = block.section.draw(block.rows)
                    charts.save(figure, docs / block.image, block.table)
                    written.append(docs / block.image)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and name what was written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the CSV files")
    parser.add_argument("--docs", type=Path, default=DOCS, help="directory of the page")
    found = parser.parse_args(arguments)
    for path in write_page(found.results, found.docs):
        print(f"Wrote {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
