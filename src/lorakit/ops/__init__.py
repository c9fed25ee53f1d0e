"""Tensors in, tensors out: the arithmetic of LoRA without modules or configurations."""

from lorakit.ops.dropout import apply_keep_mask
from lorakit.ops.dropout_mask import draw_seed, keep_mask
from lorakit.ops.low_rank import low_rank_linear, low_rank_linears
from lorakit.ops.mlp import low_rank_mlp
from lorakit.ops.operands import LinearOperands, LowRankTerm, RowScale

__all__ = [
    "LinearOperands",
    "LowRankTerm",
    "RowScale",
    "apply_keep_mask",
    "draw_seed",
    "keep_mask",
    "low_rank_linear",
    "low_rank_linears",
    "low_rank_mlp",
]
