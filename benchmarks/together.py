"""Steps of several runs on one base, computed together and one after another; their memory.

A step of the group has all that a run does in it: stacking, taking turns, each run's loss from its
part of the output, one backward pass, and the optimizers. Memory is the peak of real runs: of one
process that trains all, and of one process for each, added up.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from lorakit.training.losses.output_loss import find_output_loss
from lorakit.training.step import NextTokenStep
from lorakit.training.together.process_state import ProcessState
from lorakit.training.together.stacked_model import Leaves, Pass, StackedModel, backbone_of

ALONE = "one after another"
TOGETHER = "together"
PEAK = "peak of the processes"
_MIB = 1024

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
    members = [Member(plain, shape, r, dropout, n, options.device) for n in range(runs)]
    group = StackedModel(plain, torch.device(options.device))
    for member in members:
        group.attach(member.name, member.model)
    _require_same_losses(members, group)
    samples: dict[str, Sample] = {
        ALONE: lambda watch: _alone(watch, members),
        TOGETHER: lambda watch: _together(watch, members, group),
    }
    common = row_fields("together", shape, dtype, dropout, r)
    common["setting"] = setting_of(runs, shape.rows, shape.length, base)
    return options.keep(options.compared_laps(samples, LAPS, (ALONE,), **common))


class Member:
    """A run: its model over the shared weights, its batch, step and optimizer."""

    def __init__(
        self, base: nn.Module, shape: Shape, r: int, dropout: float, number: int, device: str
    ):
        self.name = f"run-{number}"
        self.model: Any = copy_over_same_weights(base)
        add_random_adapter(self.model, shape, r=r, dropout=dropout, seed=number)
        self.model.train()
        self.batch = make_batch(shape, device, seed=number)
        ids = self.batch["input_ids"]
        inputs = {"input_ids": ids[:1, :8], "attention_mask": torch.ones_like(ids[:1, :8])}
        output, reason = find_output_loss(self.model, inputs, ids[:1, :8])
        if output is None:
            raise RuntimeError(f"{shape.name} has no loss in chunks: {reason}.")
        self.step = NextTokenStep(shifts=True, options={"use_cache": False}, output=output)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.inputs: dict[str, Any] = {}

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        return self.step.share(self.model, self.batch).loss

    @contextmanager
    def with_backbone(self, forward: Any) -> Iterator[None]:
        """Let a function stand for the backbone's forward."""
        backbone = backbone_of(self.model)
        backbone.forward = forward
        try:
            yield
        finally:
            del backbone.forward

    def ask(self) -> Pass:
        """Return what the run would ask of the group."""
        inputs = {**self.batch, "use_cache": False}
        del inputs["labels"]
        return Pass(self.name, self.name, inputs, True, None)


def _alone(watch: Stopwatch, members: Sequence[Member]) -> None:
    for member in members:
        member.optimizer.zero_grad(set_to_none=True)
    watch.start()
    for member in members:
        member.loss().backward()
    watch.lap(FORWARD_BACKWARD)
    for member in members:
        member.optimizer.step()
    watch.lap(WITH_OPTIMIZER)


def _together(watch: Stopwatch, members: Sequence[Member], group: StackedModel) -> None:
    for member in members:
        member.optimizer.zero_grad(set_to_none=True)
    watch.start()
    losses, leaves = _losses(members, group)
    for loss in losses:
        loss.backward()
        _change_turns()
    leaves.backward()
    watch.lap(FORWARD_BACKWARD)
    for member in members:
        member.optimizer.step()
    watch.lap(WITH_OPTIMIZER)


def _losses(members: Sequence[Member], group: StackedModel) -> tuple[list[Tensor], Leaves]:
    states = [_change_turns() for _ in members]
    outputs, leaves = group.forward([member.ask() for member in members], states)
    losses = []
    for member, output in zip(members, outputs, strict=True):
        with member.with_backbone(lambda *args, own=output, **kwargs: own):
            losses.append(member.loss())
    return losses, leaves


def _change_turns() -> ProcessState:
    """Take the state of the process and put it back, as a run does where it meets the others."""
    state = ProcessState.current()
    state.restore()
    return state


def _require_same_losses(members: Sequence[Member], group: StackedModel) -> None:
    """Stop if the group computes something else."""
    for member in members:
        member.model.eval()
    expected = torch.stack([member.loss() for member in members])
    losses, _ = _losses(members, group)
    tolerance = 1e-5 if members[0].model.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.stack(losses), expected, rtol=tolerance, atol=tolerance)
    for member in members:
        member.model.train()


# ---- memory ----


def measure_memory(options: Options, shape: Shape, runs: int) -> list[Row]:
    """Measure the peaks of real runs in processes of their own, and of one that trains all."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = _write_recipes(Path(folder), shape, runs)
        apart = sum(_peak_bytes([recipe]) for recipe in recipes)
        together = _peak_bytes([*_write_recipes(Path(folder), shape, runs, "-b"), "--together"])
    common = row_fields("together", shape, torch.float32, 0.0, options.r or 8)
    common["setting"] = f"{runs} runs of 1 x 64, float32"
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
    """Return the peak of resident memory of a command that trains."""
    command = [sys.executable, "-m", "lorakit", "train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return usage.ru_maxrss * _MIB


if __name__ == "__main__":
    main()
