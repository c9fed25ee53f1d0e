"""Is the adapter better than the base, and what did it forget?"""

__all__: list[str] = []
