"""Configurations: frozen and strict, with PEFT's field names and meanings."""

from lorakit.config.lora_config import (
    MULTI_LABEL,
    NOT_COUNTED,
    REGRESSION,
    SINGLE_LABEL,
    Count,
    LoraConfig,
    ProblemType,
    QuantizationConfig,
    Rank,
    StrictConfig,
    TaskType,
    matching_pattern,
)

__all__ = [
    "MULTI_LABEL",
    "NOT_COUNTED",
    "REGRESSION",
    "SINGLE_LABEL",
    "Count",
    "LoraConfig",
    "ProblemType",
    "QuantizationConfig",
    "Rank",
    "StrictConfig",
    "TaskType",
    "matching_pattern",
]
