"""Wrappers of other libraries: the hub, models with custom code, logs and threads."""

__all__: list[str] = []
