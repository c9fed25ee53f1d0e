"""What keeps a selection from being injected, checked before anything is touched."""

__all__: list[str] = []
