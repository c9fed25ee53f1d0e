"""Plots, one file for each kind."""

__all__: list[str] = []
