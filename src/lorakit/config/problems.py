"""Explain what is wrong with a configuration: all problems that pydantic found, in sentences."""

import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lorakit.errors import ConfigError, Problem, did_you_mean, first_few

_KEYS_SHOWN = 25
_CHARACTERS_OF_ALL = 2500
_CHARACTERS_SHOWN = 80
_CHARACTERS_OF_A_PROBLEM = 300
_KEYED = (dict, Mapping)
_MEMBER = re.compile(
    r"str|int|float|bool|none|url|any|(?:tuple|list|dict|set|literal|constrained|nullable|function|"
    r"lax|chain|is-instance|union|json-or-python|enum)\b.*|\[key\]"
)
"""Pydantic's names for the member of a union that did not match."""
_MESSAGES = {
    "model_type": "input should be a section of keys and values",
    "dict_type": "input should be a section of keys and values",
    "tuple_type": "input should be a list",
    "too_short": "input should not be empty",
}
"""Instead of pydantic's messages, which name Python's types."""
_ALIASES = {
    "rank": "r",
    "lora_r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
}


def config_error(error: ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """Explain all problems that pydantic found in one ConfigError.

    Args:
        error: Error raised by pydantic.
        model: The validated class; its fields are the known keys.
        where: Origin of the values for the message, such as a file's path.
    """
    explained: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors(include_url=False, include_context=False):
        key, subject, message = _explain(problem, model)
        explained.setdefault((key, subject), []).append(message)
    # Each member of a union reports its own problem with the same value; where one has looked
    # inside, that another expected something else altogether says nothing.
    keys = {key for key, _ in explained}
    problems = [
        Problem(_sentence(subject + " or ".join(dict.fromkeys(messages))), key)
        for (key, subject), messages in explained.items()
        if not key or not any(other.startswith(f"{key}.") for other in keys)
    ]
    lines = [problem.sentence for problem in problems]
    head = f"{where} has {len(lines)} problems:\n  " if len(lines) > 1 else f"In {where}: "
    return ConfigError(head + "\n  ".join(_first_lines(lines)), problems)


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def _first_lines(lines: list[str]) -> list[str]:
    """Return as many problems as fit into a message, and the number of the others."""
    room, kept = _CHARACTERS_OF_ALL, 0
    while kept < len(lines) and room > len(lines[kept]):
        room -= len(lines[kept])
        kept += 1
    more = len(lines) - kept
    return [*lines[:kept], f"and {more} more. Fix these first."] if more else lines


def short_repr(value: Any, most: int = _CHARACTERS_SHOWN) -> str:
    """Return the repr of a value, shortened for a message.

    >>> print(short_repr(0.5), short_repr("q_proj"), short_repr("abc" * 100, most=9))
    0.5 'q_proj' 'abcabca… (300 characters)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {round(value.bit_length() * 0.30103):,} digits"
    if isinstance(value, str) and len(value) > most:
        return f"{value[: most - 2]!r}"[:-1] + f"… ({len(value):,} characters)"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, endless nesting
        text = f"a {type(value).__name__}"
    return cut_short(text, most)


def cut_short(text: str, most: int = _CHARACTERS_SHOWN) -> str:
    """Return a text, truncated if it is too long for a message.

    >>> cut_short("abcdef", 3)
    'abc…'
    """
    return text if len(text) <= most else f"{text[:most]}…"


def _explain(problem: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    """Return key, subject and problem: "r", "r: got 0; " and "input should be at least 1"."""
    is_key = problem["type"] in ("extra_forbidden", "missing")
    location, known = _resolve_location(problem["loc"], model, is_key)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        hint = _alias_hint(location[-1], known) or did_you_mean(location[-1], known)
        hint = hint or f" Known keys: {first_few(known, _KEYS_SHOWN)}."
        return key, f"unknown key {short_repr(key)}.{hint.removesuffix('.')}", ""
    if problem["type"] == "missing":
        return key, f"missing key '{key}'. Add it", ""
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    message = _MESSAGES.get(str(problem["type"])) or message[:1].lower() + message[1:]
    message = cut_short(message, _CHARACTERS_OF_A_PROBLEM)
    # A check of several keys has no key, and its message names them.
    subject = f"{short_repr(key)[1:-1]}: " if key else ""
    if isinstance(problem["input"], (str, int, float, bool, list, tuple, type(None))):
        subject += f"got {short_repr(problem['input'])}; "
    return key, subject, message


def _resolve_location(
    location: Sequence[str | int], model: type[BaseModel], is_key: bool
) -> tuple[list[str], list[str]]:
    """Return the keys that lead to a problem, and the known keys beside the last of them.

    Pydantic lists the union member that it tried, such as "str", among the keys.

    Args:
        location: Location as pydantic reports it.
        model: The validated class.
        is_key: Whether the last item is certainly a key.
    """
    names: list[str] = []
    known: list[str] = []
    types: list[Any] = [model]
    for number, part in enumerate(location):
        fields = {k: f for t in types if _is_model(t) for k, f in t.model_fields.items()}
        values = [get_args(t)[-1] for t in types if get_origin(t) in _KEYED and get_args(t)]
        is_last_key = is_key and number == len(location) - 1
        is_item = isinstance(part, int) or is_last_key or bool(values) or part in fields
        if not is_item and _MEMBER.fullmatch(str(part)) and number:
            continue
        names.append(str(part))
        known = list(fields)
        field = fields.get(str(part))
        types = _leaf_types(field.annotation if field else values[0] if values else None)
    return names, known


def _alias_hint(word: str, known: Sequence[str]) -> str:
    """Return a hint for a name that other tools use, which similar spelling would not find."""
    meant = _ALIASES.get(word)
    return f" Did you mean '{meant}'?" if meant in known else ""


def _leaf_types(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _leaf_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for arg in get_args(annotation) for leaf in _leaf_types(arg)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
