"""Build the model of a recipe, with adapter and quantized layers, on fake tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.config import QuantizationConfig
from lorakit.injection import add_adapter
from lorakit.models.new_tokens import grow_for_new_tokens
from lorakit.models.pretrained import auto_model, label_options, set_padding
from lorakit.models.skeleton import build_skeleton, load_config, saved_dtype
from lorakit.planning.fake_world import FakeWorld
from lorakit.planning.known_values import forget_values
from lorakit.quantization.devices import compute_dtype
from lorakit.quantization.load import is_quantized, load_settings
from lorakit.quantization.skeleton import quantize_skeleton
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32
from lorakit.training.starting_point import StartingPoint
from lorakit.training.tasks.base import Loaded, Task, loading_options

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
    start: StartingPoint | None = None,
) -> PreTrainedModel:
    """Build a recipe's model from its configuration.

    Args:
        recipe: The recipe.
        task: Task of the recipe.
        labels: Labels of the task; None takes those of the configuration.
        tokenizer: Tokenizer that sets the padding token.
        device: Device of the run; determines the compute dtype of a quantized base.
        tensors_on: Device of the fake tensors.
        world: Fake world of the tensors, not active yet.
        start: The adapter that the recipe starts from.
        trains_all: Whether every parameter is trained, without an adapter and in full precision.

    Raises:
        MissingFileError, ConfigError: The configuration is missing or incomplete.
        TargetError: The adapter does not fit the model.
        QuantizationError: The model cannot be quantized as configured.
    """
    options = loading_options(recipe)
    config = load_config(recipe.model, **options, **label_options(labels, task.problem_type))
    quantization = None if trains_all else recipe.quantization
    if quantization is None and is_quantized(config) and not trains_all:
        quantization = load_settings(config)
    with world.activate():
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
        quantize_skeleton(model, quantization, dtype, tensors_on, full, world.activate)
    set_padding(model, tokenizer)
    with world.activate():
        # transformers computes the covariance of the old embeddings, which has no values here.
        grow_for_new_tokens(model, tokenizer, recipe, follows_the_old=False)
        if recipe.float32_small_parameters:
            keep_small_parameters_in_float32(model)
        if trains_all:
            model.requires_grad_(True)
        elif start is not None:
            start.attach_outline(model, recipe, tensors_on)
        else:
            add_adapter(model, task.lora_config(Loaded(recipe, tokenizer, labels, model)))
    if start is not None:
        start.compare_base(recipe)
    forget_values(model.parameters())
    return model


def _dtype(
    recipe: Recipe, config: Any, quantization: QuantizationConfig | None, device: torch.device
) -> torch.dtype:
    """Return the dtype that loading gives to weights that are not quantized."""
    if recipe.dtype != "saved":
        return getattr(torch, recipe.dtype)
    if quantization is not None:
        return compute_dtype(quantization, device)
    return saved_dtype(config, recipe.model)
