"""Configurations: frozen and strict, with PEFT's field names and meanings."""

from lorakit.config.lora_config import (
    NOT_COUNTED,
    Count,
    LoraConfig,
    QuantizationConfig,
    Rank,
    StrictConfig,
    TaskType,
    matching_pattern,
)

__all__ = [
    "NOT_COUNTED",
    "Count",
    "LoraConfig",
    "QuantizationConfig",
    "Rank",
    "StrictConfig",
    "TaskType",
    "matching_pattern",
]
