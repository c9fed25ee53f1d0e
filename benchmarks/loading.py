"""Peak of resident memory while a sharded checkpoint is loaded in 4 and 8 bits.

The checkpoint has random weights in bfloat16 and is written to a temporary directory. Each variant
loads it in a separate process, so that what the libraries take themselves is part of the peak.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Shape, build_model, shape_named
from benchmarks.options import Options, parse
from benchmarks.results import Row, row
from lorakit.layers.bitsandbytes_storage import bits_of, quantized_weight

PEAK_RESIDENT = "peak resident memory while loading"
LOADED = "bytes of the loaded model"
SHARD = "largest shard"
BARE = "resident memory with the libraries imported"
LORAKIT_4, LORAKIT_8 = "lorakit, 4 bits", "lorakit, 8 bits"
TRANSFORMERS_4 = "transformers, 4 bits"
DENSE = "transformers, dense"
_SHARD_SIZE = "500MB"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("loading", __doc__, arguments)
    shape = (options.shapes or [shape_named("tiny-llama" if options.quick else "llama-1b")])[0]
    print(f"{shape.name}, bfloat16 shards of {_SHARD_SIZE} at most", flush=True)
    return measure(options, shape)


def measure(options: Options, shape: Shape) -> list[Row]:
    """Write a checkpoint of one shape and load it in every way."""
    with tempfile.TemporaryDirectory() as folder:
        build_model(shape, torch.bfloat16).save_pretrained(folder, max_shard_size=_SHARD_SIZE)
        shards = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
        found = {name: _load_elsewhere(name, folder) for name in _VARIANTS}
    rows = [_row(options, shape, SHARD, "checkpoint", max(shards))]
    for name, (bare, peak, loaded) in found.items():
        rows += [
            _row(options, shape, BARE, name, bare),
            _row(options, shape, PEAK_RESIDENT, name, peak),
            _row(options, shape, LOADED, name, loaded),
        ]
    return options.keep(rows)


def _row(options: Options, shape: Shape, measure: str, variant: str, count: float) -> Row:
    return row(
        options.origin,
        [count],
        benchmark="loading",
        measure=measure,
        shape=shape.name,
        setting=f"shards of {_SHARD_SIZE}",
        dtype=torch.bfloat16,
        variant=variant,
        unit="B",
    )


def _load_elsewhere(variant: str, folder: str) -> tuple[int, int, int]:
    """Load in a separate process; return its bare and peak resident bytes, and the model's."""
    command = [sys.executable, "-c", _PROGRAM.format(variant=variant, folder=folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


_PROGRAM = """
from benchmarks.loading import load_and_measure
load_and_measure({variant!r}, {folder!r})
"""


def load_and_measure(variant: str, folder: str) -> None:
    """Load a checkpoint in this process and print what that took, as JSON."""
    import bitsandbytes  # noqa: F401 - part of what is there before
    from transformers import AutoModelForCausalLM

    bare = _peak_resident_bytes()
    model = _VARIANTS[variant](AutoModelForCausalLM, folder)
    peak = _peak_resident_bytes()
    print(json.dumps([bare, peak, model_bytes(model)]))


def _peak_resident_bytes() -> int:
    """Return the peak of this process's resident memory; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)


def model_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights and of the scales of quantized ones."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight: Any = quantized_weight(module) if bits_of(module) else None
        tensors += [tensor for tensor in (weight or ())[1:] if tensor is not None]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def _with_lorakit(bits: int) -> Any:
    def load(auto_class: Any, folder: str) -> Any:
        from transformers import AutoConfig

        from lorakit import QuantizationConfig
        from lorakit.quantization import load_quantized

        config = QuantizationConfig(bits=bits)
        model_config = AutoConfig.from_pretrained(folder)
        options = {"dtype": torch.bfloat16}
        return load_quantized(auto_class, folder, config, model_config=model_config, **options)[0]

    return load


def _with_transformers(auto_class: Any, folder: str) -> Any:
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    return auto_class.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)


def _dense(auto_class: Any, folder: str) -> Any:
    return auto_class.from_pretrained(folder, dtype=torch.bfloat16)


_VARIANTS = {
    LORAKIT_4: _with_lorakit(4),
    LORAKIT_8: _with_lorakit(8),
    TRANSFORMERS_4: _with_transformers,
    DENSE: _dense,
}


if __name__ == "__main__":
    main()
