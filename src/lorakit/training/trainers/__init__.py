"""The trainers of the tasks, and what they share."""

__all__: list[str] = []
