"""Seconds from the command to the first step on large files, and the memory of all processes.

The files have short examples of words from the standard library's sources. A separate process plans
and trains, as `lorakit train` does, and ends at its first step; once with an empty cache and once
more with what the first run has kept. Counted is the proportional share of resident memory (PSS) of
all its processes, the libraries included, and with the seconds those of the processors.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import ROOT, Row, row

TO_FIRST_STEP = "seconds to the first step"
OF_PROCESSORS = "seconds of all processors to the first step"
PEAK = "peak memory of all processes"
MEASURES = (TO_FIRST_STEP, OF_PROCESSORS, PEAK)
FIRST, AGAIN, STREAMED = "first run", "run again", "streamed"
CHATS, PAIRS = "chats", "pairs of answers"
CLASSES, COMPLETIONS = "short texts to classify", "short texts to complete"
SIZES = {CHATS: 200_000, PAIRS: 200_000, CLASSES: 1_000_000, COMPLETIONS: 1_000_000}
SHAPE = "quickstart"
"""The model that comes with the package."""
_QUICK = 1_000
_TASKS: dict[str, dict[str, Any]] = {
    CHATS: {"task": "CAUSAL_LM"},
    PAIRS: {"task": "CAUSAL_LM", "objective": {"type": "dpo"}},
    CLASSES: {"task": "SEQ_CLS"},
    COMPLETIONS: {"task": "CAUSAL_LM"},
}
_SAMPLE_S = 0.25


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser("data_at_scale", __doc__ or "")
    parser.add_argument("--kind", nargs="+", choices=SIZES, default=list(SIZES))
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    rows: list[Row] = []
    for kind in found.kind:
        rows += measure(options, kind, _QUICK if options.quick else SIZES[kind])
    return rows


def measure(options: Options, kind: str, size: int) -> list[Row]:
    """Measure one kind of examples."""
    print(f"{size:,} {kind}", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "examples.jsonl")
        write_examples(path, kind, size)
        variants = (FIRST, AGAIN) if kind == CLASSES else (FIRST, AGAIN, STREAMED)
        for variant in variants:
            values = run_to_first_step(Path(folder), path, kind, streams=variant == STREAMED)
            for name, (value, unit) in values.items():
                common = {"measure": name, "variant": variant, "unit": unit}
                setting = f"{size:,} {kind}"
                rows.append(
                    row(
                        options.origin,
                        [value],
                        benchmark="data_at_scale",
                        shape=SHAPE,
                        setting=setting,
                        **common,
                    )
                )
    return options.keep(rows)


def write_examples(path: Path, kind: str, size: int) -> None:
    """Write examples of 20 words each."""
    words = _words()
    generator = random.Random(0)

    def text(count: int) -> str:
        # Like in real texts, few words are frequent.
        places = (int(len(words) ** generator.random()) - 1 for _ in range(count))
        return " ".join(words[place] for place in places)

    def examples() -> Iterator[dict[str, Any]]:
        for number in range(size):
            if kind == CLASSES:
                yield {"text": text(20), "label": ("bad", "good", "mixed")[number % 3]}
            elif kind == COMPLETIONS:
                yield {"prompt": text(12), "completion": f" {text(8)}"}
            elif kind == PAIRS:
                answers = {"chosen": f" {text(8)}", "rejected": f" {text(8)}"}
                yield {"prompt": text(12), **answers}
            else:
                turns = (("user", text(12)), ("assistant", text(8)))
                yield {"messages": [{"role": role, "content": said} for role, said in turns]}

    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(example)}\n" for example in examples())


def _words() -> list[str]:
    """Return the words of the standard library's sources, the most frequent first."""
    counts: dict[str, int] = {}
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        for word in re.findall(r"\b[a-z]{2,12}\b", file.read_text(encoding="utf-8")):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))


def run_to_first_step(
    folder: Path, path: Path, kind: str, *, streams: bool
) -> dict[str, tuple[float, str]]:
    """Run in a separate process; return its seconds, its processors' seconds and its memory."""
    output = tempfile.mkdtemp(dir=folder)
    data: dict[str, Any] = {"train": str(path), "cache_directory": str(folder / "kept")}
    if streams:
        data |= {"streaming": True, "max_validation_rows": _QUICK // 10}
    recipe = {**_TASKS[kind], "data": data, "output": f"{output}/run"}
    command = [sys.executable, "-c", _PROGRAM.format(recipe=recipe)]
    began_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        peak = _watched(process.pid, lambda: process.poll() is None)
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The run failed with {process.returncode}.")
    at_step_s, processors_s = json.loads(said.splitlines()[-1])
    return {
        TO_FIRST_STEP: (at_step_s - began_s, "s"),
        OF_PROCESSORS: (processors_s, "s"),
        PEAK: (peak(), "B"),
    }


def _watched(pid: int, is_running: Callable[[], bool]) -> Callable[[], float]:
    """Watch the memory of a process and its children; the result waits for its end."""
    largest = 0.0

    def watch() -> None:
        nonlocal largest
        parent = psutil.Process(pid)
        while is_running():
            total = 0.0
            try:
                for process in (parent, *parent.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:  # it has ended meanwhile
                continue
            largest = max(largest, total)
            time.sleep(_SAMPLE_S)

    thread = threading.Thread(target=watch)
    thread.start()

    def result() -> float:
        thread.join()
        return largest

    return result


_PROGRAM = """
from benchmarks.data_at_scale import train_one_step
train_one_step({recipe!r})
"""


def train_one_step(values: dict[str, Any]) -> None:
    """Plan and train until the first step in this process; print when that was, and end."""
    from lorakit.planning import plan
    from lorakit.quickstart.model_files import base_model_path
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.run import train

    training = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "eval_strategy": "no"}
    recipe = Recipe.check(
        {
            **values,
            "model": str(base_model_path()),
            "lora": {"r": 8},
            "dtype": "float32",
            "training": {**training, "load_best_model_at_end": False},
        },
        "the benchmark",
    )

    def on_event(name: str, payload: Any) -> None:
        if name == "step":
            used = os.times()
            processors_s = used.user + used.system + used.children_user + used.children_system
            print(json.dumps([time.perf_counter(), processors_s]), flush=True)
            raise KeyboardInterrupt

    plan(recipe)
    try:
        train(recipe, on_event=on_event)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
