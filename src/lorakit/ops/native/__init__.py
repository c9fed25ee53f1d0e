"""The thin products in C: the sources, the library compiled of them, and its functions."""

__all__: list[str] = []
