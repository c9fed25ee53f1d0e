"""Preparing a base for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lorakit.injection.state import first_adapted
from lorakit.layers.bitsandbytes_storage import forget_deserialization
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32


@contextmanager
def prepare_for_training(
    model: nn.Module,
    *,
    float32_small_parameters: bool = False,
    gradient_checkpointing: bool = False,
    use_reentrant: bool = False,
) -> Iterator[nn.Module]:
    """Prepare a 16-bit or quantized base for a custom training loop, inside a `with` block.

    `lorakit.train` does all of this by itself. Embeddings and the output head keep their dtype:
    converting them to float32, as is often done, doubles their size and gains nothing while they
    are frozen.

    Args:
        model: A transformers model, before or after `add_adapter`; if it carries adapters,
            `requires_grad` stays as it is, otherwise nothing requires gradients.
        float32_small_parameters: Keep the weights and biases of norms in float32 from now on, also
            after the block (`restore_small_parameters` undoes it). Call this before `add_adapter`.
        gradient_checkpointing: Recompute activations in backward, until the block ends.
        use_reentrant: Use the older checkpointing, which needs inputs that require gradients.

    Yields: The model, with the key-value cache off until the block ends. Trainers of transformers
        and TRL, which look for PEFT's layers, take a quantized model with adapters that is created
        and trained inside the block.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...     num_attention_heads=2,
        ... )
        >>> model = LlamaForCausalLM(config)
        >>> with prepare_for_training(model):
        ...     model.config.use_cache
        False
        >>> model.config.use_cache
        True
    """
    subject: Any = model
    if gradient_checkpointing:  # first, as some models refuse it
        subject.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        if use_reentrant:
            subject.enable_input_require_grads()
    if first_adapted(model) is None:
        model.requires_grad_(False)
    if float32_small_parameters:
        keep_small_parameters_in_float32(model)
    config = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    if cached is not None:
        config.use_cache = False  # type: ignore[union-attr]  # not None, see above
    forget_deserialization(model)
    try:
        with _accepted_by_trainers(getattr(model, "hf_quantizer", None)):
            yield model
    finally:
        if gradient_checkpointing:
            subject.activation_checkpointing_disable()
            if use_reentrant:
                subject.disable_input_require_grads()
        if cached is not None:
            config.use_cache = cached  # type: ignore[union-attr]  # not None, see above


@contextmanager
def _accepted_by_trainers(quantizer: Any) -> Iterator[None]:
    """Let transformers' Trainer train a quantized model without PEFT's layers inside the block."""
    if quantizer is None:
        yield
        return
    kind = type(quantizer)
    quantizer.__class__ = type(kind.__name__, (kind,), {"is_qat_trainable": True})
    try:
        yield
    finally:
        quantizer.__class__ = kind
