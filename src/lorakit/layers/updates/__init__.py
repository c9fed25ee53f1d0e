"""The updates of an adapted layer: plain, measured from an offset, of slices."""

__all__: list[str] = []
