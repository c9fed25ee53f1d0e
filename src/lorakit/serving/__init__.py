"""Many adapters behind one base, on OpenAI's protocol.

The names below are imported on first use.
"""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
    from lorakit.serving.launch import serve

__all__ = ["serve"]

__getattr__, __dir__ = _lazy_names(__name__, {"lorakit.serving.launch": ("serve",)})
