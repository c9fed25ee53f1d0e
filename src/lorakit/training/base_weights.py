"""The names of `lorakit.inference.base_weights` where earlier versions had them."""

from lorakit.inference.base_weights import BaseWeights, load_base_weights

__all__ = ["BaseWeights", "load_base_weights"]
