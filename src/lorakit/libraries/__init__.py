"""The libraries underneath: the hub, models with code of their own, logs and threads."""

__all__: list[str] = []
