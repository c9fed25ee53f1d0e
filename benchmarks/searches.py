"""A search and a study of the quickstart's task in four ways: their time and memory.

The trials train in separate processes or two in each of two, and what lies below the first adapted
layer is computed in every step or kept from the first epoch of the first trial. All trials run to
their end, and the search adapts the upper half, so that each way trains the same adapters. Time
and memory are those of `lorakit tune` and `lorakit study` with all their processes: Ray, Python and
the libraries included; memory is the proportional share of resident memory (PSS).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import Row
from lorakit.quickstart.docstrings import DocstringFiles, write_docstrings
from lorakit.quickstart.run import quickstart_recipe

ALONE = "one process for each trial"
TOGETHER = "together"
KEPT = "frozen part kept"
BOTH = "together, frozen part kept"
WAYS: dict[str, dict[str, bool]] = {
    ALONE: {"together": False, "keeps": False},
    KEPT: {"together": False, "keeps": True},
    TOGETHER: {"together": True, "keeps": False},
    BOTH: {"together": True, "keeps": True},
}
SECONDS = "seconds"
OF_PROCESSORS = "seconds of all processors"
PEAK = "peak memory of all processes"
SHAPE = "quickstart"
_AT_ONCE = 4
_TOGETHER = 2
_SAMPLE_S = 0.25
_SHARE = 0.25
_KEPT_BYTES = 4 * 10**9


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser("searches", __doc__)
    parser.add_argument("--share", type=float, default=_SHARE, help="of the examples")
    parser.add_argument("--of", choices=("search", "study"), nargs="*", help="both by default")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    share = 0.02 if options.quick else found.share
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_docstrings(Path(folder, "data"), seed=42)
        for kind in found.of or ("search", "study"):
            rows += measure(options, Path(folder), files, kind, share)
    return rows


def measure(
    options: Options, folder: Path, files: DocstringFiles, kind: str, share: float
) -> list[Row]:
    """Measure a search or a study in all ways."""
    values: dict[str, dict[str, list[float]]] = {SECONDS: {}, OF_PROCESSORS: {}, PEAK: {}}
    setting, section = _sections(options, share)[kind]
    print(setting, flush=True)
    for number, (way, how) in enumerate(WAYS.items()):
        recipe = _recipe(folder / f"{kind}-{number}", files, kind, section, share, **how)
        command = "tune" if kind == "search" else "study"
        for measure_name, value in _watched(command, recipe).items():
            values[measure_name][way] = [value]
        print(f"  {way}: {values[SECONDS][way][0]:.0f} s", flush=True)
    common = {"benchmark": "searches", "shape": SHAPE, "setting": setting}
    rows: list[Row] = []
    for name, by_way in values.items():
        unit = "B" if name == PEAK else "s"
        rows += options.compared(by_way, (ALONE,), measure=name, unit=unit, **common)
    return options.keep(rows)


def _sections(options: Options, share: float) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what the tables call the search and the study, and their sections."""
    trials = 2 if options.quick else 8
    ranks = [1, 2] if options.quick else [1, 2, 4, 8, 64]
    seeds = [1] if options.quick else [1, 2, 3]
    layers = ["all", "upper half", "upper quarter"]
    runs = len(ranks) * len(seeds) * len(layers)
    common: dict[str, Any] = {"sample_fraction": share, "max_concurrent": _AT_ONCE}
    search = {"trials": trials, "max_epochs": 4, "asha": None, **common}
    study = {"ranks": ranks, "seeds": seeds, "layers": layers, "max_epochs": 2, **common}
    study |= {"target_modules": ["all-linear"], "metric": "accuracy"}
    of = f"on {share:g} of the examples"
    return {
        "search": (f"search: {trials} trials of 4 epochs {of}, upper half", search),
        "study": (f"study: {runs} runs of 2 epochs {of}, three depths", study),
    }


def _recipe(
    folder: Path,
    files: DocstringFiles,
    kind: str,
    section: Mapping[str, Any],
    share: float,
    *,
    together: bool,
    keeps: bool,
) -> Path:
    """Write the recipe of one way; return its path."""
    values = quickstart_recipe(files, folder / "output", 42).model_dump(
        mode="json", exclude_unset=True
    )
    if kind == "search":
        values["lora"]["layers_to_transform"] = [3, 4]  # of five
        space = {
            "training.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "lora.r": {"choice": [2, 4, 8, 16]},
            "lora.lora_dropout": {"uniform": [0.0, 0.3]},
        }
        section = {**section, "space": space}
    values["frozen_part"] = {
        "cache_bytes": _KEPT_BYTES if keeps else 0,
        "cache_directory": str(folder / "kept"),
    }
    examples = sum(1 for _ in files.validation.open(encoding="utf-8"))
    values["data"]["max_validation_rows"] = max(20, int(examples * share))
    values[kind] = {**section, "together": _TOGETHER if together else 1}
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def _watched(command: str, recipe: Path) -> dict[str, float]:
    """Run a command; return its seconds, its processors' seconds and its peak of memory."""
    words = [sys.executable, "-m", "lorakit", command, str(recipe)]
    log = recipe.with_suffix(".log")
    began_s, peak = time.perf_counter(), 0.0
    processors: dict[int, float] = {}
    # Ray gives each process as many threads as it has processors, if the environment says nothing.
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with (
        log.open("w") as file,
        subprocess.Popen(words, stdout=file, stderr=file, env=others) as process,
    ):
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0.0
            for one in _living(parent):
                try:
                    times = one.cpu_times()
                    processors[one.pid] = times.user + times.system
                    total += one.memory_full_info().pss
                except psutil.Error:  # it has ended meanwhile
                    continue
            peak = max(peak, total)
            time.sleep(_SAMPLE_S)
    seconds = time.perf_counter() - began_s
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{log.read_text()[-2000:]}")
    return {SECONDS: seconds, OF_PROCESSORS: sum(processors.values()), PEAK: peak}


def _living(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
