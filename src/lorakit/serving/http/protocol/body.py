"""Parsing a body: every field is understood, or the error names it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from lorakit.errors import did_you_mean
from lorakit.serving.refusals import RequestError

_SHOWN_CHARACTERS = 60
_MOST_PROBLEMS = 5


class StrictModel(BaseModel):
    """A value in a body, in which every field must be known and have the type that is written."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(StrictModel):
    """The body of a request.

    Attributes:
        unsupported: Known fields that the server cannot honour, with the values that change
            nothing and are therefore accepted.
        reasons: Why a field is not supported, and what to do instead.
    """

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}


B = TypeVar("B", bound=Body)


def parse_body(kind: type[B], raw: bytes) -> B:
    """Return the body of a request.

    Raises:
        RequestError: It is not a JSON object, or a field is unknown, not supported or wrong; the
            first one is the error's parameter, and the text names all.
    """
    try:
        values = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(
            f"The body is not JSON: {error}. Send a JSON object.", code="invalid_json"
        ) from None
    if not isinstance(values, dict):
        raise RequestError(
            f"The body is not a JSON object: got {short_value(values)}, expected {{...}}.",
            code="invalid_json",
        )
    for name, harmless in kind.unsupported.items():
        if name not in values:
            continue
        value = values.pop(name)
        if not any(value == one and type(value) is type(one) for one in harmless):
            reason = kind.reasons.get(name, "Leave it out.")
            raise RequestError(
                f"The parameter '{name}' is not supported: got {short_value(value)}. {reason}",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _request_error(error, kind) from None


def _request_error(error: ValidationError, kind: type[Body]) -> RequestError:
    by_place: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        by_place.setdefault(_place(problem), []).append(problem)
    texts = [_describe(place, problems, kind) for place, problems in by_place.items()]
    more = f" ({len(texts) - _MOST_PROBLEMS} more)" if len(texts) > _MOST_PROBLEMS else ""
    return RequestError(
        " ".join(texts[:_MOST_PROBLEMS]) + more,
        param=next(iter(by_place)) or _find_parameter(texts[0]),
    )


def _find_parameter(text: str) -> str | None:
    """Return the first parameter that a problem of several parameters names."""
    found = re.match(r"The parameters? '(\w+)'", text)
    return None if found is None else found[1]


def _place(problem: ErrorDetails) -> str:
    """Return the place of a problem, such as `messages[0].content`.

    Steps into a union or a validator, which pydantic names after types, are left out.
    """
    place = ""
    *steps, last = problem["loc"] or ("",)
    is_unknown = problem["type"] == "extra_forbidden"  # the last step is what the client wrote
    for step in steps if is_unknown else (*steps, last):
        if isinstance(step, int):
            place += f"[{step}]"
        elif step.isidentifier() and not step[:1].isupper() and step not in _TYPE_STEPS:
            place += f".{step}" if place else step
    if is_unknown:
        place += f".{last}" if place else str(last)
    return place


_TYPE_STEPS = {"str", "int", "float", "bool", "list", "dict", "nullable"}


def _describe(place: str, problems: Sequence[ErrorDetails], kind: type[Body]) -> str:
    """Describe what is wrong at a place; for a union there is a problem for each alternative."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"The parameter '{place}' is unknown.{did_you_mean(place, kind.model_fields)}"
    if first["type"] == "missing":
        return f"The parameter '{place}' is missing."
    if first["type"] == "value_error":
        text = first["msg"].removeprefix("Value error, ")
        return f"The parameter '{place}' is wrong: {text}" if place else text
    expected = " or ".join(dict.fromkeys(_expectation(problem) for problem in problems))
    value = short_value(first["input"])
    return f"The parameter '{place}' is wrong: got {value}, expected {expected}."


def _expectation(problem: ErrorDetails) -> str:
    least = problem.get("ctx", {}).get("min_length")
    if least is not None:
        is_text = problem["type"].startswith("string")
        return f"at least {least} {'character' if is_text else 'entry'}"
    return problem["msg"].removeprefix("Input should be ")


def short_value(value: Any) -> str:
    """Return a value as messages show it, without the end of a long one."""
    text = repr(value) if not isinstance(value, bool | None) else str(value).lower()
    text = "null" if value is None else text
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[: _SHOWN_CHARACTERS - 4] + " ..."
