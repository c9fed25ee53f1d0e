"""Adapted layers: plain modules whose class is swapped in place, each carrying named updates."""

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.copies import copy_with_own, copy_with_trained_tokens, full_copy
from lorakit.layers.described import KernelShape
from lorakit.layers.kinds.conv import LoraConv1d, LoraConv2d, LoraConv3d
from lorakit.layers.kinds.embedding import LoraEmbedding
from lorakit.layers.kinds.linear import LoraConv1D, LoraLinear
from lorakit.layers.replaced import (
    ReplacedModule,
    plain_class_of,
    replace_in_place,
    restore_in_place,
)
from lorakit.layers.trained_tokens import TrainedTokens
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.layers.updates.offset_update import OffsetUpdate

__all__ = [
    "AdaptedLayer",
    "KernelShape",
    "LoraConv1D",
    "LoraConv1d",
    "LoraConv2d",
    "LoraConv3d",
    "LoraEmbedding",
    "LoraLinear",
    "LowRankUpdate",
    "OffsetUpdate",
    "ReplacedModule",
    "TrainedTokens",
    "copy_with_own",
    "copy_with_trained_tokens",
    "full_copy",
    "plain_class_of",
    "replace_in_place",
    "restore_in_place",
]
