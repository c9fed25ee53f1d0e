"""Import path of earlier versions for the names of `lorakit.inference.base_weights`."""

from lorakit.inference.base_weights import BaseWeights, load_base_weights

__all__ = ["BaseWeights", "load_base_weights"]
