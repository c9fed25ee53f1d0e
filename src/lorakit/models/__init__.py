"""Base models and tokenizers: loading, skeletons without weights, new tokens."""

__all__: list[str] = []
