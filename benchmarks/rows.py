"""Decoding a batch in which each row has its own adapter, in tokens per second against the base."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.measure import Sample, Stopwatch
from benchmarks.models import Shape, build_model, make_batch, shared_copy
from benchmarks.options import Options, parse
from benchmarks.parity import check_outputs
from benchmarks.results import Row
from benchmarks.step import row_fields
from benchmarks.variants import (
    LORAKIT,
    PEFT,
    add_random_adapter,
    peft_copy,
    quiet_peft,
    saved_adapter,
    why_not,
)

BASE = "base"
DECODE = "decode"
PROMPT_TOKENS = 32
DECODED_TOKENS = 8
SETTINGS = ((32, 1), (32, 4), (32, 16), (32, 32), (128, 128))
"""(rows of the batch, distinct adapters among them)"""
_QUICK_SETTINGS = ((4, 1), (4, 4), (8, 8))
_MOST_OF_PEFT = 64
_ROWS_COMPARED = 3

Scope = Callable[[], AbstractContextManager[Any]]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("rows", __doc__, arguments)
    dtype = options.device_dtype
    measured = []
    for shape in options.shapes_or():
        print(f"{shape.name}, {dtype}", flush=True)
        if options.runs(dtype):
            measured += measure(options, shape, dtype)
    return measured


def measure(options: Options, shape: Shape, dtype: torch.dtype) -> list[Row]:
    """Measure one shape with every number of adapters."""
    settings = _QUICK_SETTINGS if options.quick else SETTINGS
    base = build_model(shape, dtype, options.device).eval()
    has_rows = getattr(lorakit, "adapter_rows", None) is not None
    if not has_rows:
        print("  without lorakit: this version has no adapter_rows", flush=True)
    r = options.r or 8
    adapted = shared_copy(base)
    for k in range(max(adapters for _, adapters in settings)):
        add_random_adapter(adapted, shape, name=f"a{k}", r=r, seed=k, rounded_to=dtype)
    adapted.eval()
    most = max((adapters for _, adapters in settings if adapters <= _MOST_OF_PEFT), default=0)
    peer = _peft_model(base, adapted, most, dtype, options.device)

    measured = []
    for rows, adapters in settings:
        ids = make_batch(shape.with_batch(rows, PROMPT_TOKENS), options.device)["input_ids"]
        names = [f"a{row % adapters}" for row in range(rows)]
        ways: dict[str, tuple[nn.Module, Scope, dict[str, Any]]] = {BASE: (base, nullcontext, {})}
        if has_rows:
            ways[LORAKIT] = (adapted, _rows_scope(adapted, names), {})
        if peer is not None and adapters <= _MOST_OF_PEFT:
            ways[PEFT] = (peer, quiet_peft, {"adapter_names": names})
        _check(ways, adapted, ids, names, dtype)
        samples = {name: decoding(*way, ids) for name, way in ways.items()}
        values = {
            name: [rows * DECODED_TOKENS / seconds for seconds in rounds]
            for name, rounds in options.timed(samples, warmup=1).by_variant().items()
        }
        common = row_fields("rows", shape, dtype, 0.0, r)
        common |= {"measure": DECODE, "unit": "tokens/s"}
        common["setting"] = f"{rows} rows, {adapters} adapters"
        measured += options.keep(options.compared(values, (BASE,), **common))
    return measured


def _peft_model(
    base: nn.Module, adapted: nn.Module, adapters: int, dtype: torch.dtype, device: str
) -> nn.Module | None:
    reason = why_not(PEFT, dtype, device)
    if reason:
        print(f"  without {PEFT}: {reason}", flush=True)
        return None
    model: Any = None
    for k in range(adapters):
        with saved_adapter(adapted, f"a{k}") as directory, quiet_peft():
            if model is None:
                model = peft_copy(base, directory, trainable=False, name="a0")
            else:
                model.load_adapter(
                    str(directory), adapter_name=f"a{k}", autocast_adapter_dtype=False
                )
    return model.eval()


def _rows_scope(model: nn.Module, names: list[str]) -> Scope:
    return lambda: lorakit.adapter_rows(model, names)  # type: ignore[attr-defined]


def _check(
    ways: dict[str, tuple[nn.Module, Scope, dict[str, Any]]],
    adapted: nn.Module,
    ids: Tensor,
    names: list[str],
    dtype: torch.dtype,
) -> None:
    """Compare the mixed batch with one adapter after the other, and with the peer."""
    outputs = {}
    for name, (model, scope, arguments) in ways.items():
        if name != BASE:
            with torch.no_grad(), scope():
                outputs[name] = model(input_ids=ids, logits_to_keep=1, **arguments).logits
    if not outputs:
        return
    for adapter in dict.fromkeys(names[:_ROWS_COMPARED]):
        lorakit.set_adapter(adapted, adapter)
        chosen = [row for row, name in enumerate(names) if name == adapter]
        with torch.no_grad():
            alone = adapted(input_ids=ids[chosen], logits_to_keep=1).logits
        mixed = {name: output[chosen] for name, output in outputs.items()}
        check_outputs({"one adapter at a time": alone, **mixed}, "one adapter at a time", dtype)


def decoding(model: nn.Module, scope: Scope, arguments: dict[str, Any], ids: Tensor) -> Sample:
    """Return a sample that decodes some tokens from a prompt read beforehand."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad(), scope():
        model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1, **arguments)

    def sample(watch: Stopwatch) -> None:
        watch.start()
        with torch.no_grad(), scope():
            for token in range(DECODED_TOKENS):
                model(
                    input_ids=ids[:, token : token + 1],
                    cache=cache,
                    use_cache=True,
                    **arguments,
                )
        watch.lap("time")
        cache.crop(-DECODED_TOKENS)

    return sample


if __name__ == "__main__":
    main()
