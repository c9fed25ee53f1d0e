"""What the source of a model says about its modules, with adapters or without."""

__all__: list[str] = []
