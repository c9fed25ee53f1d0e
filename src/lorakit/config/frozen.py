"""Immutable dictionaries and lists for the fields of frozen values.

They are subclasses of dict and list, so `isinstance`, json, pydantic and `==` treat them as such.
They can be copied, pickled and, if their contents can, hashed.
"""

from collections.abc import Mapping
from typing import Any, NoReturn, cast


def _refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
    raise TypeError(
        f"Cannot change this {type(self).__name__}: it belongs to a frozen value. Change a copy, "
        f"{type(self).__mro__[1].__name__}(...), and make a new value from it."
    )


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed.

    >>> pattern = FrozenDict(q_proj=4)
    >>> pattern == {"q_proj": 4}, pattern | {"v_proj": 2}
    (True, {'q_proj': 4, 'v_proj': 2})
    """

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # dict has __hash__ = None
        return hash(frozenset(self.items()))

    def __copy__(self) -> "FrozenDict":
        return self

    def __reduce__(self) -> tuple[type, tuple[dict[Any, Any]]]:
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """A list that cannot be changed."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = _refuse
    clear = sort = reverse = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # list has __hash__ = None
        return hash(tuple(self))

    def __copy__(self) -> "FrozenList":
        return self

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return FrozenList, (list(self),)


def freeze(value: Any) -> Any:
    """Return a value with all mappings and lists, also nested ones, made immutable."""
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        return FrozenDict({key: freeze(inner) for key, inner in mapping.items()})
    if isinstance(value, list):
        return FrozenList(freeze(inner) for inner in cast(list[Any], value))
    if type(value) is tuple:
        return tuple(freeze(inner) for inner in cast(tuple[Any, ...], value))
    return value


def unfreeze(value: Any) -> Any:
    """Return a copy with plain dicts and lists, for code that modifies its argument."""
    if isinstance(value, Mapping):
        mapping = cast(Mapping[Any, Any], value)
        return {key: unfreeze(inner) for key, inner in mapping.items()}
    if isinstance(value, list):
        return [unfreeze(inner) for inner in cast(list[Any], value)]
    return value


def freeze_fields(instance: object) -> None:
    """Make the mappings and lists in the fields of an object immutable."""
    fields: dict[str, Any] = vars(instance)
    for name, value in fields.items():
        if isinstance(value, (Mapping, list)) and not isinstance(value, (FrozenDict, FrozenList)):
            object.__setattr__(instance, name, freeze(value))
