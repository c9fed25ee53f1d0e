"""Layers whose weight a model reads instead of calling them: an update would not act.

Mamba's mixers multiply with `dt_proj.weight`, DETR's masks and WavLM's attention pass the weights
of linear layers to a function, and some twenty families do so with their convolution's weight;
RecurrentGemma calls the convolution, but not for the next token. Such an update would get no
gradient, and merging it would change what the model computes where the adapter did not.

A layer that is called and whose weight is also read, as for a penalty, is adapted; one that is read
in training and called in evaluation (Gemma 3n's `correction_coefs`) is not. For a single token the
weight of convolutions is read in parts, so layers whose weight is read in part are not adapted.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from lorakit.errors import TargetError
from lorakit.injection.selection.sites import Site
from lorakit.layers import plain_class_of
from lorakit.model_code.weight_reads import weight_reads

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def bypassed_layers(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why the weights of the base's layers act without a call, by path."""
    found = weight_reads(modules)
    readers = {path: reader for path, reader in found.readers.items() if path not in found.used}
    readers |= found.readers_in_a_branch
    readers |= {
        path: reader
        for path, reader in found.readers_of_a_part.items()
        if issubclass(plain_class_of(modules[path]), _CONVOLUTIONS)
    }
    return {
        path: f"{reader} reads its weight instead of calling the layer"
        for path, reader in readers.items()
    }


def require_called(bypassed: Mapping[str, str], sites: Sequence[Site]) -> None:
    """Refuse layers whose weight acts without a call.

    Raises:
        TargetError: The weight of a layer to adapt acts without a call.
    """
    for site in sites:
        if site.path in bypassed:
            raise TargetError(
                f"Cannot adapt {site.path}: {bypassed[site.path]}, so an update would not act. "
                "Leave it out of target_modules."
            )
