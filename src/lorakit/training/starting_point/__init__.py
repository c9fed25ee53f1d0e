"""The adapter that a run trains on from, and where the adapter of a run comes from."""

from lorakit.training.starting_point.parent_adapter import StartingPoint

__all__ = ["StartingPoint"]
