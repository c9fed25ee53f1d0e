"""Adapters that a model carries: load, save, merge, exchange, initialize from data."""

__all__: list[str] = []
