"""Operations on adapters as values: combine, extract, resize, scale, prune."""
