"""New run: a walk of five steps from a base to a training process."""

__all__: list[str] = []
