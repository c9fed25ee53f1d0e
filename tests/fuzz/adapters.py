"""Damaged adapter directories."""

import random
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.frame import attempt

from lorakit import Adapter


@dataclass(frozen=True)
class DamagedAdapter:
    """An adapter directory and what was done to it."""

    path: Path
    damage: tuple[str, ...]


class AdapterFuzzer:
    """Loads adapters of which bytes, values, tensors or files were changed."""

    name = "adapters"
    most_s = 5.0
    most_bytes = 2**29

    def case(self, rng: random.Random, folder: Path) -> DamagedAdapter:
        return DamagedAdapter(folder / str(rng.random()), ("it is not there",))

    def check(self, case: DamagedAdapter) -> None:
        attempt(lambda: Adapter.load(case.path))
