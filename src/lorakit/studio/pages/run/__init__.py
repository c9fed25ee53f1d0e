"""Run: one run while it trains and after it, from the files of its directory."""

__all__: list[str] = []
