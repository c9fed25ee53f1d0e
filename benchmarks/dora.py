"""What a magnitude (DoRA) adds to a training step of plain LoRA, with dropout and without."""

from collections.abc import Sequence

import torch
from torch import nn

import lorakit
from benchmarks.models import Shape, build_model, make_batch, shape_named, shared_copy
from benchmarks.options import Options, parse
from benchmarks.results import Row
from benchmarks.step import LAPS, optimizer_of, row_fields, step_sample
from benchmarks.variants import PEFT, Variant, peft_copy, saved_adapter, why_not

LORA = "lorakit, LoRA"
DORA = "lorakit, DoRA"
PEFT_DORA = "peft, DoRA"
DROPOUTS = (0.0, 0.05)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("dora", __doc__, arguments)
    shapes = options.shapes or (shape_named("tiny-llama" if options.quick else "llama-69m:4"),)
    dropouts = DROPOUTS if options.dropout is None else (options.dropout,)
    rows = []
    for shape in shapes:
        for dropout in dropouts:
            print(f"{shape.name}, dropout {dropout:g}", flush=True)
            rows += measure(options, shape, options.dtype or torch.float32, dropout)
    return rows


def measure(options: Options, shape: Shape, dtype: torch.dtype, dropout: float) -> list[Row]:
    """Measure one shape at one dropout."""
    r, batch = options.r or 8, make_batch(shape, options.device)
    base = build_model(shape, dtype, options.device)
    variants = {
        LORA: adapted(base, shape, r, dropout),
        DORA: adapted(base, shape, r, dropout, use_dora=True),
    }
    if why_not(PEFT, dtype, options.device) is None:
        with saved_adapter(variants[DORA].module) as directory:
            module = peft_copy(base, directory)
        variants[PEFT_DORA] = Variant(PEFT_DORA, module, module)
    samples = {
        name: step_sample(variant, optimizer_of(variant), batch)
        for name, variant in variants.items()
        if variant.module.train()
    }
    common = row_fields("dora", shape, dtype, dropout, r)
    return options.keep(options.compared_laps(samples, LAPS, (LORA,), **common))


def adapted(
    base: nn.Module, shape: Shape, r: int, dropout: float, *, use_dora: bool = False
) -> Variant:
    """Return a copy of the base with a seeded adapter on every linear layer."""
    model = shared_copy(base)
    torch.manual_seed(1)
    options = {"lora_dropout": dropout, "target_modules": shape.targets, "use_dora": use_dora}
    lorakit.add_adapter(model, lorakit.LoraConfig(r=r, lora_alpha=2 * r, **options))
    return Variant(DORA if use_dora else LORA, model, model)


if __name__ == "__main__":
    main()
