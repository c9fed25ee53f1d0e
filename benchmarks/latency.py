"""Latency of forward: the base, its adapter unmerged and merged, at three batch sizes.

This is the setting of table 1 of Hu et al. 2021, arXiv:2106.09685. Logits are computed for the
last position alone, as when a prompt is read, so that the output head hides nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.measure import interleaved, repeated
from benchmarks.models import Shape, build_model, make_batch, shape_named, shared_copy
from benchmarks.options import Options, parse
from benchmarks.parity import check_outputs
from benchmarks.results import Row
from benchmarks.step import row_fields
from benchmarks.variants import (
    PEFT,
    add_random_adapter,
    lorakit_copy,
    peft_copy,
    saved_adapter,
    why_not,
)

BASE = "base"
UNMERGED = "lorakit, unmerged"
MERGED = "lorakit, merged"
PEFT_UNMERGED = "peft, unmerged"
FORWARD = "forward"
BATCHES = ((1, 128), (16, 256), (32, 512))
_SHORT_TOKENS = 1024
"""Below this a forward takes little time, so that three times as many rounds are affordable."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("latency", __doc__, arguments)
    dtype = options.device_dtype
    rows = []
    for shape in plan(options):
        print(f"{shape.name}, batch {shape.rows} x {shape.length}, {dtype}", flush=True)
        if options.runs(dtype):
            rows += measure(options, shape, dtype)
    return rows


def plan(options: Options) -> list[Shape]:
    """Return the shapes with their batches.

    On a CPU the two large batches run through two blocks of the model, or they would take minutes.
    """
    if options.shapes:
        return list(options.shapes)
    if options.quick:
        return [shape_named("tiny-llama").with_batch(rows, 16) for rows in (1, 2)]
    if options.on_cuda:
        return [shape_named("llama-1b").with_batch(*batch) for batch in BATCHES]
    names = ("llama-69m", "llama-69m:2", "llama-69m:2")
    pairs = zip(names, BATCHES, strict=True)
    return [shape_named(name).with_batch(*batch) for name, batch in pairs]


def measure(options: Options, shape: Shape, dtype: torch.dtype) -> list[Row]:
    """Measure one batch."""
    r = options.r or 8
    models = _models(shape, dtype, options.device, r)
    ids = make_batch(shape, options.device)["input_ids"]
    calls = {name: _forward(model, ids) for name, model in models.items()}
    outputs = {name: call() for name, call in calls.items() if name != BASE}
    check_outputs(outputs, UNMERGED, dtype)
    rounds = options.rounds * (3 if shape.tokens < _SHORT_TOKENS else 1)
    samples = {name: repeated(call, 1) for name, call in calls.items()}
    timings = interleaved(samples, rounds=rounds, warmup=2, device=options.device)
    common = row_fields("latency", shape, dtype, 0.0, r)
    return options.keep(
        options.compared(timings.by_variant(), (BASE,), measure=FORWARD, unit="s", **common)
    )


def _models(shape: Shape, dtype: torch.dtype, device: str, r: int) -> dict[str, nn.Module]:
    base = build_model(shape, dtype, device)
    models = {BASE: shared_copy(base)}
    adapted = shared_copy(base)
    add_random_adapter(adapted, shape, r=r, rounded_to=dtype)
    models[UNMERGED] = adapted
    with saved_adapter(adapted) as directory:
        models[MERGED] = lorakit_copy(base, directory)
        lorakit.merge_adapters(models[MERGED])
        reason = why_not(PEFT, dtype, device)
        if reason:
            print(f"  without {PEFT}: {reason}", flush=True)
        else:
            models[PEFT_UNMERGED] = peft_copy(base, directory, trainable=False)
    for model in models.values():
        model.eval()
    return models


def _forward(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, logits_to_keep=1).logits

    return forward


if __name__ == "__main__":
    main()
