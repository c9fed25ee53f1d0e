"""Files: written whole or not at all, read within bounds, and told of when a disk is full."""

__all__: list[str] = []
