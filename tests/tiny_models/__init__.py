"""Tiny models made on the spot: seeded, a few thousand weights each, and what tests do with them.

The modules not named here are imported by name: `adapted`, `adapters`, `by_type`, `quantized`,
`saved` and `siblings`.
"""

from tiny_models.architectures import *  # noqa: F403
from tiny_models.checks import *  # noqa: F403
from tiny_models.networks import *  # noqa: F403
