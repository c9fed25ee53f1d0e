"""Searches, studies and training on several machines, with Ray.

The names below are imported on first use.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from lorakit.tuning.search import TuneResult, tune
    from lorakit.tuning.study import StudyResult

__all__ = ["StudyResult", "TuneResult", "tune"]

_HOMES = {"StudyResult": "study", "TuneResult": "search", "tune": "search"}


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
