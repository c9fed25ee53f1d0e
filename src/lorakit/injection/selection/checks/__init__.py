"""Checks of a selection, made before the model is changed."""

__all__: list[str] = []
