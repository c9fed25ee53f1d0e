"""A training step that adapts the upper layers alone, with the layers below computed or kept.

A step of the first epoch computes the frozen part and keeps it on disk; one of a later epoch reads
it. Beside them is the step that adapts all layers. `frozen_epochs` measures whole epochs of runs.
"""

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import torch
from torch import nn

import lorakit
from benchmarks.frozen_epochs import ALL, SHARES, computed, kept, measure_epochs
from benchmarks.measure import Sample, Stopwatch
from benchmarks.models import Shape, build_model, make_batch, shape_named, shared_copy
from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import Row
from benchmarks.step import LAPS, optimizer_of, row_fields, step_sample
from benchmarks.variants import Variant
from lorakit.training.frozen_part.blocks import find_frozen_blocks
from lorakit.training.frozen_part.cached_forward import caching_frozen_part
from lorakit.training.frozen_part.store import HiddenStates

_BUDGET_BYTES = 4 * 10**9


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser("frozen_part", __doc__)
    parser.add_argument(
        "--epochs",
        nargs="*",
        metavar="SHARE",
        choices=SHARES,
        help='epochs of runs only, "upper half" or "upper quarter"; both by default',
    )
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    name = "tiny-llama" if options.quick else "llama-69m"
    rows = []
    for shape in options.shapes or (shape_named(name),):
        print(shape.name, flush=True)
        given = (options, shape, options.dtype or torch.float32, options.dropout or 0.0)
        rows += measure(*given) if found.epochs is None else []
        rows += measure_epochs(*given, found.epochs or [*SHARES])
    return rows


def measure(options: Options, shape: Shape, dtype: torch.dtype, dropout: float) -> list[Row]:
    """Measure one shape."""
    r, batch = options.r or 8, make_batch(shape, options.device)
    base = build_model(shape, dtype, options.device)
    layers = base.config.num_hidden_layers
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        samples = {ALL: _sample(adapted(base, shape, r, dropout, range(layers)), batch)}
        for share, inverse in SHARES.items():
            upper = range(layers - max(1, layers // inverse), layers)
            model = adapted(base, shape, r, dropout, upper)
            store = HiddenStates(Path(folder), share, _BUDGET_BYTES)
            opened.callback(store.close)
            samples[computed(share)] = _sample(model, batch)
            samples[kept(share)] = _sample(model, batch, store)
        common = row_fields("frozen_part", shape, dtype, dropout, r)
        references = (ALL, *map(computed, SHARES))
        return options.keep(options.compared_laps(samples, LAPS, references, **common))


def adapted(
    base: nn.Module, shape: Shape, r: int, dropout: float, layers: Sequence[int]
) -> nn.Module:
    """Return a copy of the base with a seeded adapter on the linear layers of some blocks."""
    model = shared_copy(base)
    torch.manual_seed(1)
    config = lorakit.LoraConfig(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=dropout,
        target_modules=shape.targets,
        layers_to_transform=tuple(layers),
    )
    lorakit.add_adapter(model, config)
    return model.train()


def _sample(
    model: nn.Module, batch: dict[str, torch.Tensor], store: HiddenStates | None = None
) -> Sample:
    """Return a step; with a store, one that takes the frozen part from there."""
    variant = Variant(ALL, model, model)
    step = step_sample(variant, optimizer_of(variant), batch)
    blocks = find_frozen_blocks(model)

    def sample(watch: Stopwatch) -> None:
        keeping: AbstractContextManager[None] = nullcontext()
        if store is not None and blocks is not None:
            keeping = caching_frozen_part(model, blocks, store)
        with keeping:
            step(watch)

    return sample


if __name__ == "__main__":
    main()
