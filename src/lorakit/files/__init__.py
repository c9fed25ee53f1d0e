"""Files: atomic writing, bounded reading, and clear errors when a disk is full."""

__all__: list[str] = []
