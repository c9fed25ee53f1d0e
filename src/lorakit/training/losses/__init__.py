"""Losses over the tokens that count, without the logits of all tokens at once."""

__all__: list[str] = []
