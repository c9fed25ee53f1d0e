"""The updates that an adapted layer holds: low-rank, from an offset, of slices."""

__all__: list[str] = []
