"""Run the quickstart's comparison over several seeds and write docs/quickstart.md.

Rows are appended to benchmarks/results/quickstart.csv; the page is made from the newest row of
each seed and method.

    python tools/measure_quickstart.py --seeds 1 2 3
    python tools/measure_quickstart.py --seeds 1 2 3 --bits 4   # LoRA alone, on a quantized base
"""

import argparse
import csv
import os
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
import transformers

from lorakit import QuantizationConfig, train
from lorakit.quickstart.compare import MethodResult
from lorakit.quickstart.docstrings import write_docstrings
from lorakit.quickstart.run import LORA, WEIGHTS_NAME, quickstart, quickstart_recipe

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "results" / "quickstart.csv"
PAGE = ROOT / "docs" / "quickstart.md"


def main() -> None:
    """Measure, append the rows and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--bits", type=int, choices=(4, 8), help="keep the base in so many bits")
    parser.add_argument(
        "--alone", action="store_true", help="LoRA without what it is compared with"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows")
    arguments = parser.parse_args()
    if not arguments.page_only:
        for seed in arguments.seeds:
            append_rows(measure(seed, arguments.bits, arguments.alone))
    PAGE.write_text(page(read_rows()), encoding="utf-8")
    print(f"Wrote {ROWS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


def measure(seed: int, bits: int | None = None, alone: bool = False) -> list[dict[str, object]]:
    """Run the quickstart with one seed; return a row for each method."""
    with tempfile.TemporaryDirectory() as folder:
        if bits is None:
            output = Path(folder) / "run"
            run = quickstart(output, seed=seed, compare=not alone, dtype="float32")
            methods = run.methods
        else:
            methods = (measure_quantized(Path(folder), seed, bits),)
    origin = {
        "commit": git_commit(),
        "device": f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": seed,
    }
    rows = []
    for method in methods:
        rows.append(
            {
                **origin,
                "method": method.method,
                "accuracy_before": f"{method.accuracy_before:.4f}",
                "accuracy": f"{method.accuracy:.4f}",
                "trainable_parameters": method.trainable_parameters,
                "saved_bytes": method.saved_bytes,
                "duration_s": f"{method.duration_s:.1f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_quantized(folder: Path, seed: int, bits: int) -> MethodResult:
    """Train the quickstart's recipe with its base in so many bits."""
    files = write_docstrings(folder / "data", seed=seed)
    recipe = quickstart_recipe(files, folder / "run", seed).model_copy(
        update={"quantization": QuantizationConfig(bits=bits)}
    )
    evaluations = []

    def listen(name: str, payload: dict) -> None:
        if name == "evaluation":
            evaluations.append(payload["metrics"]["eval_accuracy"])

    trained = train(recipe, on_event=listen)
    return MethodResult(
        method=f"{LORA} on a base in {bits} bits",
        accuracy_before=evaluations[0],
        accuracy=trained.metrics["eval_accuracy"],
        trainable_parameters=trained.parameter_count.trainable,
        saved_bytes=(trained.adapter_path / WEIGHTS_NAME).stat().st_size,
        duration_s=trained.wall_s,
    )


def append_rows(rows: list[dict[str, object]]) -> None:
    """Append to the CSV file, with a header if it is new."""
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    is_new = not ROWS.exists()
    with ROWS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows() -> list[dict[str, str]]:
    """Return the newest row of each seed and method."""
    with ROWS.open(encoding="utf-8", newline="") as file:
        newest = {(row["seed"], row["method"]): row for row in csv.DictReader(file)}
    return list(newest.values())


def page(rows: list[dict[str, str]]) -> str:
    """Return the page that shows the rows."""
    first = rows[0]
    seeds = sorted({int(row["seed"]) for row in rows})
    commits = sorted({row["commit"] for row in rows})
    lines = [
        "# The quickstart, measured",
        "",
        "Which package of Python's standard library does a docstring document? Ten packages; the "
        "texts come from the Python that runs the quickstart; a stratified fifth is held out. "
        "`python tools/measure_quickstart.py` writes this page from the rows in "
        "[`quickstart.csv`](../benchmarks/results/quickstart.csv).",
        "",
        f"{first['device']}, Python {first['python']}, torch {first['torch']}, transformers "
        f"{first['transformers']}, commit {', '.join(commits)}, "
        f"seeds {', '.join(map(str, seeds))}; the last column has those of each method. "
        "Accuracy is that of the best epoch on the held-out examples, for every method: mean, "
        "and range over the seeds. The time is that of the fastest seed, because other programs "
        "ran during the others.",
        "",
        "| method | before | accuracy | range | trained parameters | saved | time | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        measured = [row for row in rows if row["method"] == method]
        accuracy = [float(row["accuracy"]) for row in measured]
        before = statistics.mean(float(row["accuracy_before"]) for row in measured)
        seconds = min(float(row["duration_s"]) for row in measured)
        lines.append(
            f"| {method} | {before:.3f} | {statistics.mean(accuracy):.3f} | "
            f"{min(accuracy):.3f}–{max(accuracy):.3f} | "
            f"{int(measured[0]['trainable_parameters']):,} | "
            f"{int(measured[0]['saved_bytes']) / 1e6:.2f} MB | {seconds:.0f} s | "
            f"{', '.join(sorted(row['seed'] for row in measured))} |"
        )
    lines += ["", *_verdict(rows)]
    return "\n".join(lines) + "\n"


def _verdict(rows: list[dict[str, str]]) -> list[str]:
    """Return the differences to LoRA, seed by seed."""
    by_method: dict[str, dict[str, float]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = float(row["accuracy"])
    lora = by_method.pop(LORA)
    verdicts = []
    for method, accuracy in by_method.items():
        gaps = [100 * (lora[seed] - accuracy[seed]) for seed in lora if seed in accuracy]
        each = ", ".join(f"{gap:+.1f}" for gap in gaps)
        verdicts.append(
            f"LoRA against {method}, seed by seed, in points: {each}; "
            f"mean {statistics.mean(gaps):+.1f}."
        )
    return [line for verdict in verdicts for line in (verdict, "")][:-1]


def git_commit() -> str:
    """Return the short hash of the checked-out commit, marked if the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()


if __name__ == "__main__":
    main()
