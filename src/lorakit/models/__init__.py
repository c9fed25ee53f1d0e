"""Base models and tokenizers: loading, skeletons without weights, new tokens."""
