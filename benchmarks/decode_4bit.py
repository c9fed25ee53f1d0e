"""Decoding on a base in 4 bits, in tokens per second against the same base in 16 or 32 bits.

`lorakit.ops.quantized` multiplies with the codes up to the number of tokens that this shows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import nn

import lorakit
from benchmarks.models import Shape, make_batch, shape_named
from benchmarks.options import Options, parse
from benchmarks.parity import check_outputs
from benchmarks.qlora import dense_model, quantized_model
from benchmarks.results import Row
from benchmarks.rows import DECODE, DECODED_TOKENS, PROMPT_TOKENS, decoding
from benchmarks.step import row_fields
from benchmarks.variants import add_random_adapter, saved_adapter
from lorakit.ops import quantized
from lorakit.ops.native import compiled_library, quantized_kernels

DENSE = "dense base"
BUFFER = "4 bits, dense buffer"
CODES = "4 bits, codes"
SHAPES = ("llama-69m", "llama-154m")
DTYPES = (torch.bfloat16, torch.float32)
ROWS = (1, 4, 8, 16)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("decode_4bit", __doc__, arguments)
    if options.on_cuda or quantized_kernels.load() is None:
        reason = compiled_library.unavailable() or "a GPU"
        print(f"  not run: there is no C here ({reason})", flush=True)
        return []
    names = ("tiny-llama",) if options.quick else SHAPES
    measured = []
    for shape in options.shapes or [shape_named(name) for name in names]:
        for dtype in (options.dtype,) if options.dtype else DTYPES:
            print(f"{shape.name}, {dtype}", flush=True)
            if options.runs(dtype):
                measured += measure(options, shape, dtype)
    return measured


def measure(options: Options, shape: Shape, dtype: torch.dtype) -> list[Row]:
    """Measure one shape with every number of rows."""
    r = options.r or 8
    stored = quantized_model(shape, dtype, options.device, 4)
    add_random_adapter(stored, shape, r=r, rounded_to=dtype)
    dense = dense_model(shape, dtype, options.device)
    with saved_adapter(stored) as directory:
        lorakit.load_adapter(dense, directory)
    ways: dict[str, tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]] = {
        DENSE: (dense.eval(), nullcontext),
        BUFFER: (stored.eval(), lambda: _most_tokens(0)),
        CODES: (stored, lambda: _most_tokens(max(ROWS))),
    }
    measured = []
    for rows in ROWS[:2] if options.quick else ROWS:
        ids = make_batch(shape.with_batch(rows, PROMPT_TOKENS), options.device)["input_ids"]
        outputs = {}
        for name, (model, scope) in ways.items():
            with torch.no_grad(), scope():
                outputs[name] = model(input_ids=ids[:, :1]).logits
        check_outputs(outputs, DENSE, dtype)
        samples = {name: decoding(*way, {}, ids) for name, way in ways.items()}
        values = {
            name: [rows * DECODED_TOKENS / seconds for seconds in rounds]
            for name, rounds in options.timed(samples, warmup=1).by_variant().items()
        }
        common = row_fields("decode_4bit", shape, dtype, 0.0, r)
        common |= {"measure": DECODE, "unit": "tokens/s", "setting": f"{rows} rows"}
        measured += options.keep(options.compared(values, (DENSE, BUFFER), **common))
    return measured


@contextmanager
def _most_tokens(tokens: int) -> Iterator[None]:
    """Multiply with the codes up to this number of tokens."""
    with mock.patch.object(quantized, "_MOST_TOKENS", tokens):
        yield


if __name__ == "__main__":
    main()
