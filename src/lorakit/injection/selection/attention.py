"""The output projections of nn.MultiheadAttention, which are adapted only together with it."""

import re
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorakit.config import LoraConfig
from lorakit.layers.kinds.attention import LoraAttentionOutput, LoraMultiheadAttention
from lorakit.layers.replaced import plain_class_of

OUTPUT = "out_proj"

OUTPUT_SHARE = 2
"""Scaling of an output projection's update, relative to its attention's."""

_ATTENTIONS = (nn.MultiheadAttention, LoraMultiheadAttention)


def attention_outputs(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the path of each output projection's attention, by the path of the projection."""
    return {
        f"{path}.{OUTPUT}" if path else OUTPUT: path
        for path, module in modules.items()
        if plain_class_of(module) in _ATTENTIONS
    }


def with_outputs(selected: Sequence[str], outputs: Mapping[str, str]) -> list[str]:
    """Return selected modules with each attention followed by its output projection."""
    of_attention = {attention: output for output, attention in outputs.items()}
    paths: list[str] = []
    for path in selected:
        paths += [path, of_attention[path]] if path in of_attention else [path]
    return paths


def is_output(module: nn.Module) -> bool:
    """Return whether this is the output projection of an attention."""
    return plain_class_of(module) in (NonDynamicallyQuantizableLinear, LoraAttentionOutput)


def attention_obstacle(module: nn.MultiheadAttention) -> str | None:
    """Return why an attention cannot be adapted, or None."""
    if module.in_proj_weight is None:
        return (
            "kdim or vdim differs from embed_dim, so it has three input projections instead of one"
        )
    return None


OUTPUT_OBSTACLE = (
    "nn.MultiheadAttention reads its weight without calling it. Name the attention module, which "
    "adapts both projections"
)


def with_output_patterns(config: LoraConfig, outputs: Mapping[str, str]) -> LoraConfig:
    """Return settings that give adapted output projections what PEFT gives them.

    That is the attention's rank, and twice its alpha: PEFT 0.21 adds the update of the output
    projection twice, so this is the update that its files describe.

    Args:
        config: The settings.
        outputs: The attention of each adapted output projection, both by path.

    Returns: The same object if the settings contain them already.
    """
    ranks = {out: config.rank_for(attention) for out, attention in outputs.items()}
    alphas = {out: OUTPUT_SHARE * config.alpha_for(a) for out, a in outputs.items()}
    return config.with_values(ranks, alphas)


def without_output_patterns(config: LoraConfig, outputs: Mapping[str, str]) -> LoraConfig:
    """Return settings without the patterns that `with_output_patterns` adds to them."""
    implied = {f"^{re.escape(output)}" for output in outputs}
    patterns = {
        field: {key: value for key, value in getattr(config, field).items() if key not in implied}
        for field in ("rank_pattern", "alpha_pattern")
    }
    return config.model_copy(update=patterns)
