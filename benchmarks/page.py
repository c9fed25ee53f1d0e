"""Write docs/performance.md, the machines' pages and their charts from the CSV files alone."""

import argparse
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import BENCHMARKS, charts, shared_work, tables
from benchmarks.results import RESULTS, ROOT, Row, matching, read_rows
from benchmarks.sections import SECTIONS, Section

DOCS = ROOT / "docs"
PAGE_NAME = "performance.md"
MACHINES = Path("performance")
IMAGES = Path("images") / "performance"


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


_HEAD = """# Performance, measured

The cost of training, inference and handling adapters with lorakit, compared with the frozen limit, full fine-tuning, PEFT and loralib. Each machine has a page with all its numbers and charts.
"""  # noqa: E501

_METHOD = """## How it is measured

`make bench` measures and writes these pages; `python -m benchmarks.page` only writes them, from the rows in [`{results}`]({results}).

Variants are timed in turns, and ratios are computed within a round. A cell shows the median over the rounds and, in brackets, the 20th and 80th percentile; counted bytes have neither; an empty cell was not measured. In training, inference and decoding all variants have the same base weights, adapters and batch. A variant with an adapter is timed only if its outputs, or its loss and gradients, equal lorakit's up to rounding.

- *limit*, the frozen limit: forward and the gradients of activations, with nothing trained, as torch computes them. Where lorakit's products with the base are faster than torch's ([ADR 26](adr/0026-float32-products-take-the-wider-vectors.md)), a step is below it.
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
    given = (found.results, found.docs)
    for path in (*write_page(*given), *shared_work.write(*given)):
        print(f"Wrote {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
