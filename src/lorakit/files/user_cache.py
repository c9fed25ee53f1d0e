"""Where what can be computed again is kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LORAKIT_CACHE"
"""Environment variable that names the directory of all that is kept."""


def user_cache(name: str, chosen: str | None = None) -> Path:
    """Return the directory of one kind of kept results.

    Args:
        name: Name of the kind, such as "frozen-part".
        chosen: Directory that the user has chosen for it. By default it is `name` in the directory
            of the variable LORAKIT_CACHE, or in lorakit in the user's cache.
    """
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser().absolute() / name
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lorakit" / name
