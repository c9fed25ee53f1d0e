"""The blocks of a base below the first adapted one, computed once for each example."""

from lorakit.training.frozen_part.preparing import FrozenPart, frozen_part_once

__all__ = ["FrozenPart", "frozen_part_once"]
