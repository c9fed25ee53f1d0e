"""The pages; each is one file, or a package if it has parts."""

__all__: list[str] = []
