"""Search, studies and several machines: everything that runs on Ray.

The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.tuning.search import TuneResult, tune
    from lorakit.tuning.study import StudyResult

__all__ = ["StudyResult", "TuneResult", "tune"]

_HOMES = {"StudyResult": "study", "TuneResult": "search", "tune": "search"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
