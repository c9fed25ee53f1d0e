"""Tiny models made on the spot: seeded, a few thousand weights each, and what tests do with them.

`quantized`, `by_type`, `siblings`, `trained_tokens`, `adapted` and `adapters` are imported by name.
"""

from tiny_models.architectures import *  # noqa: F403
