"""Damaged adapter directories: headers, tensors, settings by type, and files."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tests.fuzz.damage import DAMAGE, FLOATS, LAST, bytes_of, header_of, rewrite_header
from tests.fuzz.frame import FindingError, attempt
from torch import Tensor

from lorakit import Adapter, LoraConfig
from lorakit.adapters.peft_files import files
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import LorakitError


@dataclass(frozen=True)
class DamagedAdapter:
    """An adapter directory and what was done to it."""

    path: Path
    damage: tuple[str, ...]
    allow_pickle: bool = False


class AdapterFuzzer:
    """Loads adapters that are damaged in one to three ways.

    What loads must be what the files say: the bytes of each tensor where the header puts them, all
    of them finite, with the settings of the configuration.
    """

    name = "adapters"
    most_s = 6.0
    most_bytes = 2**29

    def case(self, rng: random.Random, folder: Path) -> DamagedAdapter:
        path = folder / "adapter"
        _whole_adapter(rng).save(path)
        damage = []
        if rng.random() < 0.5:
            rewrite_header(path, lambda header: header.pop("__metadata__", None))
            damage.append("as another tool saves it")
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            change = rng.choice(DAMAGE)
            try:
                done = change(rng, path)
            except Exception:  # earlier damage has left nothing of the kind
                continue
            damage.append(f"{change.__name__.strip('_')}: {done}")
            if change in LAST:
                break
        return DamagedAdapter(path, tuple(damage), rng.random() < 0.3)

    def check(self, case: DamagedAdapter) -> None:
        # Nobody saves into these directories: files that disagree will not agree later.
        with patch.object(files, "_RETRY_S", 0.0):
            self._check(case)

    def _check(self, case: DamagedAdapter) -> None:
        loaded = attempt(lambda: Adapter.load(case.path, allow_pickle=case.allow_pickle))
        if isinstance(loaded, LorakitError):
            return
        values = json.loads((case.path / CONFIG_FILE).read_bytes())
        for key in ("r", "use_dora", "use_rslora", "bias"):
            if values.get(key) is not None and values[key] != getattr(loaded.config, key):
                raise FindingError(f"{key} is {values[key]!r} and {getattr(loaded.config, key)!r}")
        if not math.isfinite(loaded.config.lora_alpha):
            raise FindingError(f"lora_alpha is {loaded.config.lora_alpha}")
        held = [t for pair in loaded.factors.values() for t in pair]
        held += [*loaded.magnitudes.values(), *loaded.replaced.values()]
        held += [*loaded.trained_tokens.values(), *loaded.base_weights.values()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in held):
            raise FindingError("a tensor is not finite")
        if (case.path / WEIGHTS_FILE).is_file():
            _require_same(held, _said_by_header(case.path / WEIGHTS_FILE))
        again = case.path.parent / "again"
        saved = attempt(lambda: loaded.save(again))
        if not isinstance(saved, LorakitError):
            read = attempt(lambda: Adapter.load(again))
            if isinstance(read, LorakitError):
                raise FindingError(f"what was saved is refused: {read}")
            if read.config != loaded.config or read.factors.keys() != loaded.factors.keys():
                raise FindingError("what was saved is read as something else")


def _require_same(held: list[Tensor], said: list[bytes]) -> None:
    """Compare the bytes that were loaded with the bytes in the file, without their names."""
    found = sorted(bytes_of(tensor) for tensor in held)
    lacking = [data for data in found if data not in said]
    if lacking:
        raise FindingError(f"{len(lacking)} tensors have other bytes than the file")


def _said_by_header(file: Path) -> list[bytes]:
    data = file.read_bytes()
    header, start = header_of(data)
    header.pop("__metadata__", None)
    return [
        data[start + e["data_offsets"][0] : start + e["data_offsets"][1]] for e in header.values()
    ]


def _whole_adapter(rng: random.Random) -> Adapter:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice([*FLOATS.values()])
    r, width = rng.randint(1, 4), rng.randint(2, 6)
    use_dora = rng.random() < 0.3
    paths = [f"model.layers.{n}.{kind}" for n in range(rng.randint(1, 2)) for kind in ("q", "v")]
    factors = {
        path: (
            torch.randn(r, width, generator=generator).to(dtype),
            torch.randn(width, r, generator=generator).to(dtype),
        )
        for path in paths
    }
    heads = {"score.weight": torch.ones(2, width), "score.bias": torch.zeros(2)}
    has_head = rng.random() < 0.3
    config = LoraConfig(
        r=r,
        lora_alpha=rng.choice((1, 8, 0.5)),
        target_modules=("q", "v"),
        use_dora=use_dora,
        use_rslora=rng.random() < 0.3,
        modules_to_save=("score",) if has_head else (),
        rank_pattern={"v": r} if rng.random() < 0.3 else {},
    )
    magnitudes = {path: torch.ones(width, dtype=dtype) for path in paths} if use_dora else {}
    return Adapter(
        config,
        factors,
        heads if has_head else {},
        base_model=rng.choice((None, "owner/base")),
        magnitudes=magnitudes,
    )
