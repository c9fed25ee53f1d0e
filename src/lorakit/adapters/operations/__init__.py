"""Operations on adapters as values: combine, extract, resize, scale, prune."""

__all__: list[str] = []
