"""What a configuration or a file selects in a model: decisions that change nothing."""

__all__: list[str] = []
