"""The calls, a file for each group of them."""

__all__: list[str] = []
