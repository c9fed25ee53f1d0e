"""One file for each kind of base layer that can be adapted."""

__all__: list[str] = []
