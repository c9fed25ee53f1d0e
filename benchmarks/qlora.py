"""A training step on a base in 4 and 8 bits, against the frozen limit of a dense one and PEFT.

The dense model holds the dequantized weights, so all variants of one column compute the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.measure import Stopwatch
from benchmarks.memory import peak_bytes, saved_for_backward
from benchmarks.models import Shape, build_model, make_batch, shape_named
from benchmarks.options import Options, parse
from benchmarks.parity import check_parity
from benchmarks.results import Row, has_bf16_instructions
from benchmarks.step import LAPS, PEAK, SAVED, optimizer_of, row_fields, step_sample
from benchmarks.variants import (
    LIMIT,
    LORAKIT,
    Variant,
    add_random_adapter,
    factors_of,
    frozen_limit,
    quiet_peft,
    saved_adapter,
)
from lorakit.layers.bitsandbytes_storage import (
    bits_of,
    dequantize_model,
    quantized_weight,
    storage_bytes,
)

Bits = Literal[4, 8]
DENSE = "lorakit, dense base"
WEIGHTS = "bits per parameter of the quantized layers"
REFERENCES = (LIMIT, DENSE)
SHAPES = ("llama-69m", "llama-300m")
COLUMNS = ((0.0, 8), (0.05, 16))
"""(dropout, r)"""


def quantized_name(library: str, bits: Bits) -> str:
    """Return what the tables call a library on a quantized base.

    >>> quantized_name("peft", 4)
    'peft, 4 bits'
    """
    return f"{library}, {bits} bits"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("qlora", __doc__, arguments)
    names = ("tiny-llama",) if options.quick else SHAPES
    quick_dtype = torch.bfloat16 if options.on_cuda or has_bf16_instructions() else torch.float32
    dtype = options.dtype or quick_dtype
    rows = []
    for shape in options.shapes or [shape_named(name) for name in names]:
        for dropout, r in columns(options):
            print(f"{shape.name}, {dtype}, dropout {dropout:g}, r={r}", flush=True)
            if options.runs(dtype):
                rows += measure(options, shape, dtype, dropout, r)
    return rows


def columns(options: Options) -> list[tuple[float, int]]:
    """Return (dropout, r) of each column, as asked for or the benchmark's own."""
    asked = [
        (dropout if options.dropout is None else options.dropout, options.r or r)
        for dropout, r in COLUMNS
    ]
    return list(dict.fromkeys(asked))


def measure(
    options: Options, shape: Shape, dtype: torch.dtype, dropout: float, r: int
) -> list[Row]:
    """Measure one shape in one column."""
    batch = make_batch(shape, options.device)
    variants: dict[str, Variant] = {}
    for bits in (4, 8):
        variants |= _quantized_variants(shape, dtype, dropout, r, options.device, bits, batch)
    optimizers = {name: optimizer_of(variant) for name, variant in variants.items()}
    samples = {
        name: step_sample(variant, optimizers[name], batch) for name, variant in variants.items()
    }
    references = (*REFERENCES, quantized_name("peft", 4), quantized_name("peft", 8))
    common = row_fields("qlora", shape, dtype, dropout, r)
    rows = options.compared_laps(samples, LAPS, references, **common)
    for counted, counts in _bytes(variants, batch, options.device, samples).items():
        values = {name: [count] for name, count in counts.items()}
        rows += options.compared(values, references, measure=counted, unit="B", **common)
    bits_each = {
        name: [_bits_per_parameter(variant.module)]
        for name, variant in variants.items()
        if name not in REFERENCES
    }
    rows += options.compared(bits_each, (), measure=WEIGHTS, unit="bits", **common)
    return options.keep(rows)


def _quantized_variants(
    shape: Shape,
    dtype: torch.dtype,
    dropout: float,
    r: int,
    device: str,
    bits: Bits,
    batch: dict[str, Tensor],
) -> dict[str, Variant]:
    """Return lorakit and PEFT on a base in so many bits, with 4 also the dense models beside."""
    ours, peer = quantized_name(LORAKIT, bits), quantized_name("peft", bits)
    built: dict[str, nn.Module] = {ours: quantized_model(shape, dtype, device, bits)}
    add_random_adapter(built[ours], shape, r=r, dropout=dropout, rounded_to=dtype)
    with saved_adapter(built[ours]) as directory:
        built[peer] = _peft(quantized_model(shape, dtype, device, bits), directory)
        if bits == 4:
            built[DENSE] = dense_model(shape, dtype, device)
            lorakit.load_adapter(built[DENSE], directory, trainable=True)
            built[LIMIT] = frozen_limit(dense_model(shape, dtype, device))
    variants = {
        name: Variant(name, module.train(), module, factors_of(module))
        for name, module in built.items()
    }
    # In 8 bits bitsandbytes rounds the input as well while a model evaluates, as it does here.
    tolerated = dtype if bits == 4 else torch.bfloat16
    compared_with_ours = {name: variant for name, variant in variants.items() if name != ours}
    check_parity({LORAKIT: variants[ours], **compared_with_ours}, batch, tolerated)
    return variants


def quantized_model(shape: Shape, dtype: torch.dtype, device: str, bits: Bits) -> nn.Module:
    """Return a model of a shape whose linear layers are quantized."""
    name = str(dtype).removeprefix("torch.")
    config = lorakit.QuantizationConfig(bits=bits, compute_dtype=name)
    model = build_model(shape, dtype, device).requires_grad_(False)
    return lorakit.quantize_model(model, config)


def dense_model(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module:
    """Return the model of the values that four bits stand for."""
    model = quantized_model(shape, dtype, device, 4)
    dequantize_model(model, dtype)
    return model


def _peft(base: nn.Module, directory: Path) -> nn.Module:
    """Return a quantized base that trains a saved adapter with PEFT, in the base's dtype."""
    with quiet_peft():
        from peft import PeftModel

        return PeftModel.from_pretrained(
            base, str(directory), is_trainable=True, autocast_adapter_dtype=False
        )


def _bytes(
    variants: dict[str, Variant], batch: dict[str, Tensor], device: str, samples: dict
) -> dict[str, dict[str, float]]:
    """Return bytes by measure and variant; what belongs to the weights is no saved activation."""
    counts: dict[str, dict[str, float]] = {SAVED: {}, PEAK: {}}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        living = [*variant.module.parameters(), *variant.module.buffers(), *batch.values()]
        for module in variant.module.modules():
            weight = quantized_weight(module) if bits_of(module) else None
            living += [t for t in (weight or ())[1:] if t is not None]
        counts[SAVED][name] = saved_for_backward(lambda v=variant: v.loss(batch), living)
        counts[PEAK][name] = peak_bytes(lambda n=name: samples[n](Stopwatch(device)), device)
        variant.module.zero_grad(set_to_none=True)
    return counts


def _bits_per_parameter(model: nn.Module) -> float:
    """Return the bits a parameter of a quantized layer takes, from its storages."""
    layers = [module for module in model.modules() if bits_of(module)]
    parameters = sum(layer.in_features * layer.out_features for layer in layers)  # type: ignore[operator]
    return 8 * storage_bytes(layers) / parameters


if __name__ == "__main__":
    main()
