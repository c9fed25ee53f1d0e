"""A tiny model of each family of transformers, with inputs that fit it."""

import inspect
from typing import Any

import torch
import transformers
from tests.families.exceptions import INPUTS, LEFT_OUT, MODEL_CLASSES, SPECIAL
from tests.families.shrinking import shrunk
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

_TASKS = (
    "CAUSAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "SEQUENCE_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "CTC",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
)
"""From the auto classes; the first that has a family gives its model."""

ROWS, LENGTH, TARGET_LENGTH = 2, 12, 7


def _model_classes() -> dict[str, str]:
    found: dict[str, str] = {}
    for task in _TASKS:
        for family, name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            found.setdefault(family, name if isinstance(name, str) else name[0])
    found |= MODEL_CLASSES
    return {family: found[family] for family in sorted(found) if family not in LEFT_OUT}


FAMILIES = _model_classes()
"""Name of the model's class by family, which is transformers' `model_type`."""


def tiny_config(family: str) -> PreTrainedConfig:
    """Return a family's configuration with tiny sizes."""
    kind = CONFIG_MAPPING[family]
    config = kind(**shrunk(kind(), **SPECIAL.get(family, {})))
    for one in _configs(config):
        if hasattr(one, "use_cache"):
            one.use_cache = False
    return config


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(one for child in inner for one in _configs(child))]


def tiny_model(family: str) -> PreTrainedModel:
    """Return a family's model in eval mode, without dropout, with the same weights every time."""
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[family])(tiny_config(family)).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def inputs_of(family: str, model: PreTrainedModel) -> dict[str, Any]:
    """Return the arguments of the forward, the same every time."""
    generator = torch.Generator().manual_seed(1)
    names = inspect.signature(model.forward).parameters
    config = model.config
    given: dict[str, Any] = {}
    if family in INPUTS:
        return INPUTS[family](model, generator)
    required = {n for n, one in names.items() if one.default is inspect.Parameter.empty}
    reads_both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    if "input_ids" in names:
        given["input_ids"] = _tokens(config, LENGTH, generator)
        if "attention_mask" in names:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
    if "decoder_input_ids" in names:
        given["decoder_input_ids"] = _tokens(config, TARGET_LENGTH, generator)
    for name, make in _SIGNALS.items():
        if name in names and ("input_ids" not in names or reads_both or name in required):
            given[name] = make(config, generator)
    return given


def _tokens(config: PreTrainedConfig, length: int, generator: torch.Generator) -> Tensor:
    size = getattr(config.get_text_config(), "vocab_size", None) or 64
    return torch.randint(3, size, (ROWS, length), generator=generator)


def _image(config: PreTrainedConfig, generator: torch.Generator) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    return torch.randn(ROWS, channels, height, width, generator=generator)


def _features(config: PreTrainedConfig, generator: torch.Generator) -> Tensor:
    if config.model_type == "whisper":
        return torch.randn(
            ROWS, config.num_mel_bins, 2 * config.max_source_positions, generator=generator
        )
    bins = next(
        (
            getattr(config, n)
            for n in ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
            if hasattr(config, n)
        ),
        16,
    )
    return torch.randn(ROWS, 40, bins, generator=generator)


def _video(config: PreTrainedConfig, generator: torch.Generator) -> Tensor:
    image = _image(config, generator)
    frames = getattr(config, "num_frames", 2)
    return image[:, None].repeat(1, frames, 1, 1, 1)


def _samples(config: PreTrainedConfig, generator: torch.Generator) -> Tensor:
    return torch.randn(ROWS, 2000, generator=generator)


_SIGNALS = {
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "input_values": _samples,
    "input_features": _features,
}
"""What other inputs than tokens are made by."""


def outputs_of(model: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    """Return the floating point tensors that a model makes of its inputs, with the same seed."""
    torch.manual_seed(2)
    return list(_tensors(model(**given)))


def _tensors(found: Any) -> Any:
    if isinstance(found, Tensor):
        if found.is_floating_point():
            yield found
    elif isinstance(found, dict):
        for key, value in found.items():
            if key not in ("cache", "cache_params", "mems", "loss"):
                yield from _tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _tensors(value)
