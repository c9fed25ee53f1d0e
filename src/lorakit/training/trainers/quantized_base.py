"""Keep transformers and TRL from what they do to any quantised base, adapted or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def marking_as_adapted(model: Any) -> Iterator[None]:
    """Mark a quantised model as adapted inside the block, else transformers refuses to train it.

    transformers' PEFT integration sets the same attribute. Other code takes it as a sign of PEFT
    layers, so it is removed afterwards.
    """
    is_quantized = getattr(model, "is_quantized", False)
    if is_quantized:
        model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        if is_quantized:
            del model._hf_peft_config_loaded


@contextmanager
def hiding_quantization(model: Any) -> Iterator[None]:
    """Prevent TRL from casting the adapter to bfloat16, as it does on any quantised base.

    Small updates are lost in bfloat16, and lorakit chooses the dtype of the factors.
    """
    names = ("is_loaded_in_4bit", "is_loaded_in_8bit")
    hidden = {name: vars(model).pop(name) for name in names if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(hidden)
