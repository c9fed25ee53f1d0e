"""Talking to served models, in this process or over HTTP, through one interface."""

__all__: list[str] = []
