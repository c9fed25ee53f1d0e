"""Amounts of memory as users write them."""

from __future__ import annotations

import re

from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError

_UNITS = {
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    "b": 1,
}
_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?)\s*([a-z]*)")
_MOST_BYTES = 1e18


def parse_memory(text: str) -> int:
    """Parse an amount of memory.

    >>> parse_memory("16GB"), parse_memory("1.5 GiB"), parse_memory("800mb")
    (16000000000, 1610612736, 800000000)

    Raises:
        ConfigError: The text is not an amount of memory.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    unit = found.group(2) if found else ""
    unit = f"{unit}b" if f"{unit}b" in _UNITS and unit else unit
    size = float(found.group(1)) if found else 0.0
    if unit not in _UNITS or not 0 < size * _UNITS[unit] < _MOST_BYTES:
        meant = f" Did you mean {found.group(1)}GB?" if found and not unit and size else ""
        raise ConfigError(
            f"Cannot read the memory: got {short_repr(text)}, expected a number and a unit such as "
            f"16GB, 24 GiB or 800MB.{meant}"
        )
    return int(size * _UNITS[unit])
