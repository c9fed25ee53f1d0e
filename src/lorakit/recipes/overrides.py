"""Dotted overrides of a recipe, such as "lora.r=16"."""

from collections.abc import Sequence
from typing import Any

from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError
from lorakit.recipes import yaml_text

_DEEPEST_KEY = 8
"""Largest number of dotted names in the key of an override."""
_PROBLEMS_SHOWN = 20
_PATTERNS = ("lora.rank_pattern", "lora.alpha_pattern")
_MARKS = "|>,:-#&*!%@?`"
"""Characters that mean something else in YAML, and alone are a value such as a delimiter: the shell
takes the quotes of `data.delimiter="|"`."""


def apply_overrides(overrides: Sequence[str], values: dict[str, Any]) -> None:
    """Apply dotted overrides to a mapping in place.

    Raises:
        ConfigError: Lists every override that is not `key=value` or whose key goes through a value
            that is not a section.
    """
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = _split_key(key.strip())
        if not equals or not all(parts) or len(parts) > _DEEPEST_KEY:
            problems.append(f"got {short_repr(override)}, expected key=value such as lora.r=16.")
            continue
        section, blocked = section_at(values, parts)
        if blocked is not None:
            where = short_repr(blocked)[1:-1]
            problems.append(f"got {short_repr(override)}, but {where} is a value, not a section.")
            continue
        mark = text.strip()
        if len(mark) == 1 and mark in _MARKS:
            section[parts[-1]] = mark
            continue
        try:
            section[parts[-1]] = yaml_text.parse(text, f"the override {short_repr(override)}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("Cannot apply the overrides: " + "\n  ".join(problems[:_PROBLEMS_SHOWN]))


def _split_key(key: str) -> list[str]:
    """Split a dotted key; what follows a pattern's name is one key, the name of modules.

    >>> _split_key("lora.rank_pattern.layers.0.q_proj")
    ['lora', 'rank_pattern', 'layers.0.q_proj']
    """
    pattern = next((name for name in _PATTERNS if key.startswith(f"{name}.")), None)
    return key.split(".") if pattern is None else [*pattern.split("."), key[len(pattern) + 1 :]]


def section_at(values: dict[str, Any], parts: list[str]) -> tuple[dict[str, Any], str | None]:
    """Return the section a dotted key lies in, and the key of the value in the way, if any."""
    for depth, part in enumerate(parts[:-1], start=1):
        if values.get(part) is None:
            values[part] = {}
        if not isinstance(values[part], dict):
            return values, ".".join(parts[:depth])
        values = values[part]
    return values, None
