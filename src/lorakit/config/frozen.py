"""Mappings and lists inside values that do not change: they read as dict and list, and refuse more.

They are a dict and a list to everything that asks (`isinstance`, json, pydantic, `==`), and can be
hashed as far as what is in them can be, copied and pickled.
"""

from collections.abc import Mapping
from typing import Any, NoReturn


def _refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
    raise TypeError(
        f"Cannot change this {type(self).__name__}: it is part of a value that is frozen. Change a "
        f"copy, {type(self).__mro__[1].__name__}(...), and make a new value of it."
    )


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed.

    >>> pattern = FrozenDict(q_proj=4)
    >>> pattern == {"q_proj": 4}, pattern | {"v_proj": 2}
    (True, {'q_proj': 4, 'v_proj': 2})
    """

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __copy__(self) -> "FrozenDict":
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[dict[Any, Any]]]:  # type: ignore[override]
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """A list that cannot be changed."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse  # type: ignore[assignment]
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __copy__(self) -> "FrozenList":
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[list[Any]]]:  # type: ignore[override]
        return FrozenList, (list(self),)


def frozen(value: Any) -> Any:
    """Return a value with its mappings and lists, inner ones too, as such that do not change."""
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(inner) for key, inner in value.items()})
    if isinstance(value, list):
        return FrozenList(frozen(inner) for inner in value)
    if type(value) is tuple:
        return tuple(frozen(inner) for inner in value)
    return value


def thawed(value: Any) -> Any:
    """Return a copy with ordinary dicts and lists, for what writes into what it is given."""
    if isinstance(value, Mapping):
        return {key: thawed(inner) for key, inner in value.items()}
    return [thawed(inner) for inner in value] if isinstance(value, list) else value


def freeze_fields(instance: Any) -> None:
    """Make the mappings that a frozen dataclass was given such that do not change."""
    for name, value in vars(instance).items():
        if isinstance(value, (Mapping, list)) and not isinstance(value, (FrozenDict, FrozenList)):
            object.__setattr__(instance, name, frozen(value))
