"""What is wrong with a configuration, in sentences: every problem that pydantic found at once."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lorakit.errors import ConfigError, did_you_mean, first_few

_KEYS_SHOWN = 25
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
    """Explain every problem pydantic found in one ConfigError.

    Args:
        error: What pydantic raised.
        model: The class that was validated; its fields are the known keys.
        where: The origin to name, such as a file's path.
    """
    explained: dict[str, list[str]] = {}
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        subject, message = _explain(problem, location, model)
        explained.setdefault(subject, []).append(message)
    # The members of a union complain one by one about the same value.
    lines = [subject + " or ".join(dict.fromkeys(m)) for subject, m in explained.items()]
    lines = [line if line.endswith("?") else f"{line}." for line in lines]
    head = f"{where} has {len(lines)} problems:\n  " if len(lines) > 1 else f"In {where}: "
    return ConfigError(head + "\n  ".join(lines))


_PLAIN_MEMBERS = ("str", "int", "float", "bool")
_WRAPPED_MEMBERS = ("function-", "tuple[", "lax-")


def _explain(problem: Any, location: list[str], model: type[BaseModel]) -> tuple[str, str]:
    """Return what is wrong, and how: "r: got 0; " and "input should be at least 1"."""
    is_unknown = problem["type"] == "extra_forbidden"  # its location ends in a key of the user's
    if len(location) > 1 and not is_unknown and _is_union_member(location[-1]):
        location = location[:-1]
    key = ".".join(part for part in location if not part.startswith(_WRAPPED_MEMBERS))
    if is_unknown:
        known = list(_model_at(model, location[:-1]).model_fields)
        hint = _known_alias(location[-1], known) or did_you_mean(location[-1], known)
        hint = hint or f" Known keys: {first_few(known, _KEYS_SHOWN)}."
        return f"unknown key '{key}'.{hint.removesuffix('.')}", ""
    if problem["type"] == "missing":
        return f"missing key '{key}'. Add it", ""
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    message = message[:1].lower() + message[1:]
    if isinstance(problem["input"], (str, int, float, bool, list, tuple, type(None))):
        return f"{key or 'the whole'}: got {problem['input']!r}; ", message
    return f"{key or 'the whole'}: ", message


def _is_union_member(part: str) -> bool:
    """Return whether pydantic put a member of a union into a location, not a key."""
    return part in _PLAIN_MEMBERS or part.startswith(_WRAPPED_MEMBERS)


def _known_alias(word: str, known: Sequence[str]) -> str:
    """Return a hint for words other tools use, where spelling alone would mislead."""
    meant = _ALIASES.get(word)
    return f" Did you mean '{meant}'?" if meant in known else ""


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """Return the nested config class that a location of keys leads to."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            break
        model = next((t for t in _leaf_types(field.annotation) if _is_model(t)), model)
    return model


def _leaf_types(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for arg in get_args(annotation) for leaf in _leaf_types(arg)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
