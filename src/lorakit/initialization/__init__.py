"""Initializations: the values that a fresh adapter begins with."""

__all__: list[str] = []
