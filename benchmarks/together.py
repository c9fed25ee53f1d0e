"""Steps of several runs on one base, computed together and one after another; their memory.

A step of the group has all that a run does in it: stacking, taking turns, each run's loss from its
part of the output, one backward pass, and the optimizers. Memory is the peak of real runs: of one
process that trains all, and of one process for each, added up.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.goal import Goal
from benchmarks.measure import Sample, Stopwatch
from benchmarks.models import (
    Shape,
    build_model,
    make_batch,
    save_with_tokenizer,
)
from benchmarks.options import Options, parse
from benchmarks.qlora import quantized_model
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD, LAPS, WITH_OPTIMIZER, row_fields
from benchmarks.variants import add_random_adapter
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.training.frozen_part import FrozenPart
from lorakit.training.losses.find_output_loss import find_output_loss
from lorakit.training.step import OutputStep
from lorakit.training.together.meeting_point import meeting_in_forward
from lorakit.training.together.shared_passes import Seat, SharedPasses
from lorakit.training.together.turns import Turn

ALONE = "one after another"
TOGETHER = "together"
PEAK = "peak of the processes"
MEMORY_SETTING = "4 runs of 1 x 64, float32"
_KIB = 1024
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
_STEPS = 6
"""Steps of a sample. Threads of runs live from their first step to their last, which are hundreds;
starting them is a part of each sample here."""

COLUMNS: tuple[tuple[int, int, int, str], ...] = (
    (8, 1, 32, "4 bits"),
    (4, 1, 64, "bfloat16"),
    (4, 4, 128, "float32"),
)
"""Runs, rows and tokens of each, and the base."""
_DTYPES = {"4 bits": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def setting_of(runs: int, rows: int, length: int, base: str) -> str:
    """Return what the tables call a column.

    >>> setting_of(8, 1, 32, "4 bits")
    '8 runs of 1 x 32, 4 bits'
    """
    return f"{runs} runs of {rows} x {length}, {base}"


GOALS = tuple(
    Goal(
        f"{setting}: {measure}, together / one after another",
        {
            "benchmark": "together",
            "measure": measure,
            "shape": "llama-69m",
            "setting": setting,
            "variant": TOGETHER,
            "ratio_to": ALONE,
            "dtype": dtype,
            "dropout": 0.0,
            "r": 8,
        },
        must,
        aim,
    )
    for measure, setting, dtype, must, aim in (
        (FORWARD_BACKWARD, "8 runs of 1 x 32, 4 bits", "bfloat16", 0.35, 0.25),
        (FORWARD_BACKWARD, "4 runs of 1 x 64, bfloat16", "bfloat16", 0.60, 0.50),
        (FORWARD_BACKWARD, "4 runs of 4 x 128, float32", "float32", 0.95, 0.85),
        (PEAK, MEMORY_SETTING, "float32", 0.50, 0.40),
    )
)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("together", __doc__, arguments)
    rows = []
    for shape in options.shapes_or():
        for runs, batch_rows, length, base in COLUMNS:
            if options.dtype not in (None, _DTYPES[base]) or not options.runs(_DTYPES[base]):
                continue
            print(f"{shape.name}, {setting_of(runs, batch_rows, length, base)}", flush=True)
            rows += measure(options, shape.with_batch(batch_rows, length), runs, base)
        rows += measure_memory(options, shape, 4)
    return rows


def measure(options: Options, shape: Shape, runs: int, base: str) -> list[Row]:
    """Measure the time of one column."""
    dtype, r, dropout = _DTYPES[base], options.r or 8, options.dropout or 0.0
    plain = (
        quantized_model(shape, dtype, options.device, 4)
        if base == "4 bits"
        else build_model(shape, dtype, options.device)
    )
    passes = SharedPasses()
    members = [Member(passes, plain, shape, r, dropout, n, options.device) for n in range(runs)]
    _require_same_losses(members, passes)
    samples: dict[str, Sample] = {
        ALONE: lambda watch: _alone(watch, members),
        TOGETHER: lambda watch: _together(watch, members, passes),
    }
    common = row_fields("together", shape, dtype, dropout, r)
    common["setting"] = setting_of(runs, shape.rows, shape.length, base)
    return options.keep(options.compared_laps(samples, LAPS, (ALONE,), **common))


class Member:
    """A run: its model over the shared weights, its batch, step and optimizer."""

    def __init__(
        self,
        passes: SharedPasses,
        base: nn.Module,
        shape: Shape,
        r: int,
        dropout: float,
        number: int,
        device: str,
    ):
        self.turn = Turn(f"run-{number}", lambda: self.steps(1))
        self.model: Any = copy_over_same_weights(base)
        add_random_adapter(self.model, shape, r=r, dropout=dropout, seed=number)
        self.model.train()
        self.batch = make_batch(shape, device, seed=number)
        ids = self.batch["input_ids"]
        inputs = {"input_ids": ids[:1, :8], "attention_mask": torch.ones_like(ids[:1, :8])}
        output, reason = find_output_loss(self.model, inputs, ids[:1, :8])
        if output is None:
            raise RuntimeError(f"{shape.name} has no loss in chunks: {reason}.")
        self.output = output
        self.step = OutputStep(shifts=True, options={"use_cache": False}, output=output)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.passes = passes
        passes.join(self.turn, self.model, base)

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        return self.step.share(self.model, self.batch).loss

    def steps(self, count: int) -> Tensor:
        """Compute the loss and the gradients of the batch several times, in turn with others."""
        for _ in range(count - 1):
            self.loss_and_gradients()
            self.optimizer.zero_grad(set_to_none=True)
        return self.loss_and_gradients()

    def loss_and_gradients(self) -> Tensor:
        """Compute the loss and the gradients of the batch, in a turn of those of others."""
        seat = Seat(self.passes, self.turn, FrozenPart())
        self.output.losses_elsewhere = seat.losses
        try:
            with meeting_in_forward(self.model, seat):
                loss = self.loss()
            loss.backward()
            seat.backward()
        finally:
            self.output.losses_elsewhere = None
        return loss.detach()


def _alone(watch: Stopwatch, members: Sequence[Member]) -> None:
    _clear(members)
    watch.start()
    for step in range(_STEPS):
        if step:
            _clear(members)
        for member in members:
            member.loss().backward()
    watch.lap(FORWARD_BACKWARD, _STEPS)
    _optimize(watch, members)


def _together(watch: Stopwatch, members: Sequence[Member], passes: SharedPasses) -> None:
    _clear(members)
    watch.start()
    _run_turns(members, passes, _STEPS)
    watch.lap(FORWARD_BACKWARD, _STEPS)
    _optimize(watch, members)


def _clear(members: Sequence[Member]) -> None:
    for member in members:
        member.optimizer.zero_grad(set_to_none=True)


def _optimize(watch: Stopwatch, members: Sequence[Member]) -> None:
    """Note the time of a step with its optimizers."""
    before = watch.laps[FORWARD_BACKWARD]
    watch.start()
    for member in members:
        member.optimizer.step()
    watch.lap(WITH_OPTIMIZER)
    watch.laps[WITH_OPTIMIZER] += before


def _run_turns(members: Sequence[Member], passes: SharedPasses, steps: int = 1) -> list[Tensor]:
    """Compute the losses and the gradients of all runs together; return the last losses."""
    for member in members:
        member.turn = Turn(member.turn.name, partial(member.steps, steps))
    passes.start(*(member.turn for member in members))
    for member in members:
        member.turn.is_over.wait()
        if member.turn.error is not None:
            raise member.turn.error
    return [member.turn.result for member in members]


def _require_same_losses(members: Sequence[Member], passes: SharedPasses) -> None:
    """Stop if the group computes something else."""
    for member in members:
        member.model.eval()
    expected = torch.stack([member.loss().detach() for member in members])
    found = _run_turns(members, passes)
    tolerance = 1e-5 if members[0].model.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.stack(found), expected, rtol=tolerance, atol=tolerance)
    for member in members:
        member.model.train()


# ---- memory ----


def measure_memory(options: Options, shape: Shape, runs: int) -> list[Row]:
    """Measure the peaks of real runs in separate processes, and of one process that trains all."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = _write_recipes(Path(folder), shape, runs)
        apart = sum(_peak_bytes([recipe]) for recipe in recipes)
        together = _peak_bytes([*_write_recipes(Path(folder), shape, runs, "-b"), "--together"])
    common = row_fields("together", shape, torch.float32, 0.0, options.r or 8)
    common["setting"] = MEMORY_SETTING
    values = {ALONE: [float(apart)], TOGETHER: [float(together)]}
    return options.keep(options.compared(values, (ALONE,), measure=PEAK, unit="B", **common))


def _write_recipes(folder: Path, shape: Shape, runs: int, suffix: str = "") -> list[str]:
    model, data = folder / "model", folder / "texts.jsonl"
    if not model.exists():
        save_with_tokenizer(shape, model)
    texts = [{"prompt": f"question {n} " * 8, "completion": "answer " * 24} for n in range(64)]
    data.write_text("".join(json.dumps(text) + "\n" for text in texts))
    paths = []
    for number in range(runs):
        recipe = {
            "model": str(model),
            "task": "CAUSAL_LM",
            "dtype": "float32",
            "data": {"train": str(data), "max_length": 64},
            "lora": {"r": 8, "target_modules": list(shape.targets)},
            "training": {"max_steps": 4, "per_device_train_batch_size": 1, "use_cpu": True},
            "output": str(folder / f"run-{number}{suffix}"),
        }
        paths.append(str(folder / f"{number}{suffix}.yaml"))
        Path(paths[-1]).write_text(json.dumps(recipe))
    return paths


def _peak_bytes(arguments: Sequence[str]) -> int:
    """Return the peak of resident memory of a command that trains.

    A small process starts it: Linux counts what the process that starts a program has used, too.
    """
    command = [sys.executable, "-m", "lorakit", "train", *arguments]
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], check=True, capture_output=True, text=True
    )
    return int(found.stdout) * _KIB


if __name__ == "__main__":
    main()
