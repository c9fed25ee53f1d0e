"""Searches, studies and training on several machines, with Ray.

The names below are imported on first use.
"""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
    from lorakit.tuning.search import TuneResult, tune
    from lorakit.tuning.study import StudyResult

__all__ = ["StudyResult", "TuneResult", "tune"]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.tuning.search": ("TuneResult", "tune"),
        "lorakit.tuning.study": ("StudyResult",),
    },
)
