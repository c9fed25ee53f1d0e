"""Losses: over the tokens that count, and never with all logits at once."""

__all__: list[str] = []
