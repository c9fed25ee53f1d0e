"""The trainers, their common base class and their callbacks."""

__all__: list[str] = []
