"""The very model of a recipe, adapter and quantised layers included, on fake tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.config import QuantizationConfig
from lorakit.injection import add_adapter
from lorakit.models.new_tokens import grow_for_new_tokens
from lorakit.models.pretrained import auto_model, label_options
from lorakit.models.skeleton import build_skeleton, load_config
from lorakit.planning.fake_world import FakeWorld
from lorakit.planning.known_values import forget_values
from lorakit.quantization.devices import compute_dtype
from lorakit.quantization.load import is_quantized, load_settings
from lorakit.quantization.skeleton import quantize_skeleton
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32
from lorakit.training.tasks.base import Task, loading_options, set_padding

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe


def build_fake_model(
    recipe: Recipe,
    task: Task,
    labels: tuple[str, ...] | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    tensors_on: torch.device,
    world: FakeWorld,
    *,
    trains_all: bool = False,
) -> PreTrainedModel:
    """Build a recipe's model from its configuration.

    Args:
        recipe: The recipe.
        task: Its task.
        labels: The task's labels; None takes the configuration's own.
        tokenizer: Sets the padding token.
        device: Where the run would be: it decides in which dtype a quantised base computes.
        tensors_on: Where the fake tensors are.
        world: What the tensors live in; it is not entered yet.
        trains_all: Whether every parameter is trained, without an adapter and in full precision.

    Raises:
        MissingFileError, ConfigError: The configuration is not there or says too little.
        TargetError: The adapter does not fit the model.
        QuantizationError: The model cannot be quantised as asked.
    """
    options = loading_options(recipe)
    config = load_config(recipe.model, **options, **label_options(labels))
    quantization = None if trains_all else recipe.quantization
    if quantization is None and is_quantized(config) and not trains_all:
        quantization = load_settings(config)
    with world.entered():
        model = build_skeleton(
            auto_model(task.task_type),
            config,
            recipe.model,
            device=tensors_on,
            dtype=_dtype(recipe, config, quantization, device),
            trust_remote_code=options["trust_remote_code"],
        )
    if quantization is not None:
        full = recipe.lora.modules_to_save
        dtype = compute_dtype(quantization, device)
        quantize_skeleton(model, quantization, dtype, tensors_on, full, world.entered)
    set_padding(model, tokenizer)
    with world.entered():
        # Their covariance, which transformers looks at, is that of no numbers here.
        grow_for_new_tokens(model, tokenizer, recipe, follows_the_old=False)
        if recipe.float32_small_parameters:
            keep_small_parameters_in_float32(model)
        if trains_all:
            model.requires_grad_(True)
        else:
            add_adapter(model, task.lora_config(recipe, model, tokenizer))
    forget_values(model.parameters())
    return model


def _dtype(
    recipe: Recipe, config: Any, quantization: QuantizationConfig | None, device: torch.device
) -> torch.dtype:
    """Return the dtype of the weights that are not quantised, as loading takes it."""
    if recipe.dtype != "auto":
        return getattr(torch, recipe.dtype)
    if quantization is not None:
        return compute_dtype(quantization, device)
    own = config.dtype or config.get_text_config().dtype
    if own is None:
        own = _saved_dtype(Path(recipe.model)) or torch.float32
    return getattr(torch, own) if isinstance(own, str) else own


def _saved_dtype(directory: Path) -> torch.dtype | None:
    """Return the dtype of the first weight of a checkpoint on disk, where there is one."""
    for path in sorted(directory.glob("*.safetensors")) if directory.is_dir() else ():
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                dtype = weights.get_slice(name).get_dtype()
                known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
                if dtype in known:
                    return known[dtype]
    return None
