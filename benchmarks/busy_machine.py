"""A training step while other programs use the machine, by how threads wait for each other.

The threads that share a product wait for the slowest of them: in a long loop, which is OpenMP's
default, in a short one (`lorakit.libraries.torch_environment`), or asleep. Each variant has a
separate process, because the setting is read when torch is loaded. The processes take turns, and
for the busy half of the rounds two more processes compute all the time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from benchmarks.measure import turns
from benchmarks.models import Shape, make_batch, shape_named
from benchmarks.options import Options, parse
from benchmarks.results import ROOT, Row
from benchmarks.step import optimizer_of, row_fields
from benchmarks.variants import LIMIT, LORAKIT_MLP, PEFT, build_variants, why_not
from lorakit.libraries.torch_environment import SPIN_COUNT

MEASURE = "forward+backward+optimizer"
QUIET = "quiet"
BUSY = "two busy processes"
IN_A_LOOP = "threads wait in a loop"
BRIEFLY = "threads wait in a short loop"
ASLEEP = "threads wait asleep"
_POLICIES = {
    IN_A_LOOP: {},
    BRIEFLY: {"GOMP_SPINCOUNT": SPIN_COUNT},
    ASLEEP: {"OMP_WAIT_POLICY": "passive"},
}
_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_STEPS = 2
_WARMUP_STEPS = 3
_LONGEST_LOAD_S = 900


def variant_name(who: str, how: str) -> str:
    """Return what rows call a variant of `benchmarks.variants` with a way of waiting."""
    return f"{who}, {how}"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("busy_machine", __doc__, arguments)
    if options.on_cuda:
        print("  not run: it is about the threads of a CPU", flush=True)
        return []
    shapes = options.shapes or (shape_named("tiny-llama" if options.quick else "llama-4m"),)
    rows = []
    for shape in shapes:
        print(shape.name, flush=True)
        rows += measure(options, shape)
    return rows


def measure(options: Options, shape: Shape) -> list[Row]:
    """Measure one shape on a quiet and on a busy machine."""
    asked = (LORAKIT_MLP,) if options.quick else (LIMIT, LORAKIT_MLP, PEFT)
    whos = [who for who in asked if not why_not(who, torch.float32, "cpu")]
    common = row_fields("busy_machine", shape, torch.float32, 0.0, options.r or 8)
    rows = []
    with ExitStack() as stack:
        workers = {
            variant_name(who, how): stack.enter_context(_Worker(who, shape, common["r"], added))
            for who in whos
            for how, added in _POLICIES.items()
        }
        for load in (QUIET, BUSY):
            with _busy_processes(2 if load == BUSY else 0):
                seconds: dict[str, list[float]] = {name: [] for name in workers}
                for number in range(options.rounds):
                    for name in turns(list(workers), number):
                        seconds[name].append(workers[name].seconds_of_a_step())
            references = [variant_name(who, IN_A_LOOP) for who in whos]
            fields = {**common, "setting": load, "measure": MEASURE, "unit": "s"}
            for who, reference in zip(whos, references, strict=True):
                names = [variant_name(who, how) for how in _POLICIES]
                times = {name: seconds[name] for name in names}
                rows += options.compared(times, (reference,), **fields)
    return options.keep(rows)


class _Worker:
    """A process with one variant that runs some steps whenever it is asked to."""

    def __init__(self, who: str, shape: Shape, r: int, added: dict[str, str]):
        environment = {k: v for k, v in os.environ.items() if k not in _WAIT_VARIABLES}
        source = f"from benchmarks.busy_machine import work; work({who!r}, {shape.name!r}, {r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=ROOT,
            env={**environment, **added, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds_of_a_step(self) -> float:
        """Let the process run some steps; return the mean time of one."""
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        stdin.write("go\n")
        stdin.flush()
        for line in stdout:
            name, _, value = line.partition(" ")
            if name == "seconds":
                return float(value)
        raise RuntimeError("A worker ended before its time; its error stands above.")


def work(who: str, shape_name: str, r: int) -> None:
    """Run steps of a variant, some for each line that comes in; print the mean time of one."""
    shape = shape_named(shape_name)
    variant = build_variants(shape, torch.float32, names=[who], r=r)[who]
    optimizer, batch = optimizer_of(variant), make_batch(shape)

    def step() -> None:
        variant.module.zero_grad(set_to_none=True)
        variant.loss(batch).backward()
        if optimizer:
            optimizer.step()

    for _ in range(_WARMUP_STEPS):
        step()
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(_STEPS):
            step()
        print("seconds", (time.perf_counter() - began) / _STEPS, flush=True)


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """Keep some processes computing inside the block; they end by themselves if it never does."""
    source = f"import time; end = time.time() + {_LONGEST_LOAD_S}\nwhile time.time() < end: pass"
    started = [subprocess.Popen([sys.executable, "-c", source]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
