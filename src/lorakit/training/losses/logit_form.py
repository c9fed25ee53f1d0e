"""Transformations of the output layer's logits that model configurations describe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
_DIVISORS = ("logits_scaling",)
"""Names of these settings in transformers' configurations."""
_OFFSET = "final_logits_bias"


@dataclass(frozen=True)
class LogitForm:
    """A model's logits from its output layer's logits z: cap · tanh(scale · z / cap) + offset."""

    scale: float = 1.0
    cap: float | None = None
    offset: Tensor | None = None
    """(vocabulary,), or None."""

    @property
    def is_identity(self) -> bool:
        """Whether the model's logits are those of its output layer."""
        return self.scale == 1.0 and self.cap is None and self.offset is None

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform the logits of the output layer, (*, vocabulary)."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits if self.offset is None else logits + self.offset


def candidate_forms(model: Any, vocabulary: int) -> Iterator[LogitForm]:
    """Yield the transformations that a model's configuration allows for, the identity first.

    Args:
        model: A transformers model.
        vocabulary: Number of logits of a token.
    """
    scales, caps = _scales_and_caps(model)
    offset = getattr(model, _OFFSET, None)
    has_offset = isinstance(offset, Tensor) and offset.numel() == vocabulary and offset.any()
    offsets = [offset.detach().reshape(-1)] if has_offset else [None]  # type: ignore[union-attr]  # there if has_offset
    for add, cap, scale in product(offsets, caps, scales):
        yield LogitForm(scale, cap, add)


def read_logit_form(model: Any) -> LogitForm:
    """Return the transformation with all settings of a model's configuration applied."""
    scales, caps = _scales_and_caps(model)
    return LogitForm(scales[-1], caps[-1])


def _scales_and_caps(model: Any) -> tuple[list[float], list[float | None]]:
    config = model.config
    places = (config, config.get_text_config(), getattr(config, "decoder", None))
    scales = [1.0, *_numbers(places, _FACTORS)]
    scales += [1 / number for number in _numbers(places, _DIVISORS) if number]
    caps = [None, *(number for number in _numbers(places, _CAPS) if number)]
    return scales, caps


def _numbers(places: tuple[Any, ...], names: tuple[str, ...]) -> list[float]:
    found = [getattr(place, name, None) for name in names for place in places]
    return [float(value) for value in dict.fromkeys(found) if isinstance(value, int | float)]
