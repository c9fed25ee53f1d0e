"""Adapted layers: plain modules whose class is swapped in place, each carrying named updates."""

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.conv import KernelShape, LoraConv1d, LoraConv2d, LoraConv3d
from lorakit.layers.conv1d import LoraConv1D
from lorakit.layers.copies import copy_with_own, full_copy
from lorakit.layers.embedding import LoraEmbedding
from lorakit.layers.linear import LoraLinear
from lorakit.layers.replaced import (
    ReplacedModule,
    plain_class_of,
    replace_in_place,
    restore_in_place,
)
from lorakit.layers.update import LowRankUpdate

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
    "ReplacedModule",
    "copy_with_own",
    "full_copy",
    "plain_class_of",
    "replace_in_place",
    "restore_in_place",
]
