"""Runs: all runs of the folder, newest first, live."""

__all__: list[str] = []
