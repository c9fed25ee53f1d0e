"""Tensors in, tensors out: the arithmetic of LoRA without modules or configurations."""

from lorakit.ops.dropout import apply_keep_mask, draw_seed, keep_mask
from lorakit.ops.low_rank import LowRankTerm, low_rank_linear

__all__ = ["LowRankTerm", "apply_keep_mask", "draw_seed", "keep_mask", "low_rank_linear"]
