from typing import Any, ClassVar

import pytest
from pydantic import Field

from lorakit.serving.http.protocol.body import Body, parse_body
from lorakit.serving.refusals import RequestError


class Example(Body):
    unsupported: ClassVar = {"colour": (None, "red", False)}
    reasons: ClassVar = {"colour": "Paint it yourself."}

    model: str
    number: int | None = Field(None, ge=1)
    texts: str | list[str] = "a"
    share: float = 0.5
    entries: list[int] = Field([1], min_length=1)


def refused(body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_body(Example, body)
    assert caught.value.status == 400
    return caught.value


def test_a_right_body_is_parsed_and_whole_numbers_are_fine_where_fractions_are():
    body = parse_body(Example, b'{"model": "m", "number": 2, "share": 1}')
    assert (body.model, body.number, body.share) == ("m", 2, 1.0)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "The body is not JSON: EOF while parsing"),
        (b'{"model": "\\ud800"}', "The body is not JSON: "),
        (b"\xff\xfe", "The body is not JSON: "),
        (b'{"model": "m", "share": NaN}', "The body is not JSON: "),
        (b"[" * 5000, "The body is not JSON: recursion limit exceeded"),
        (b"", "The body is not JSON: EOF"),
        (b"[1, 2]", "The body is not a JSON object: got [1, 2], expected {...}."),
        (b"null", "The body is not a JSON object: got null, expected {...}."),
    ],
)
def test_what_is_no_object_of_json_is_refused(raw, words):
    error = refused(raw)
    assert str(error).startswith(words)
    assert (error.param, error.code) == (None, "invalid_json")


@pytest.mark.parametrize(
    ("raw", "param", "text"),
    [
        (b"{}", "model", "The parameter 'model' is missing."),
        (
            b'{"model": "m", "nmber": 1}',
            "nmber",
            "The parameter 'nmber' is unknown. Did you mean 'number'?",
        ),
        (
            b'{"model": "m", "Number": 1}',
            "Number",
            "The parameter 'Number' is unknown. Did you mean 'number'?",
        ),
        (b'{"model": "m", "top-p": 1}', "top-p", "The parameter 'top-p' is unknown."),
        (
            b'{"model": "m", "number": "1"}',
            "number",
            "The parameter 'number' is wrong: got '1', expected a valid integer.",
        ),
        (
            b'{"model": "m", "number": -3}',
            "number",
            "The parameter 'number' is wrong: got -3, expected greater than or equal to 1.",
        ),
        (
            b'{"model": "m", "number": true}',
            "number",
            "The parameter 'number' is wrong: got true, expected a valid integer.",
        ),
        (
            b'{"model": null}',
            "model",
            "The parameter 'model' is wrong: got null, expected a valid string.",
        ),
    ],
)
def test_each_mistake_names_its_parameter(raw, param, text):
    error = refused(raw)
    assert (str(error), error.param, error.code) == (text, param, "invalid_parameter")


def test_all_mistakes_are_told_at_once():
    error = refused(b'{"number": 0, "other": 1}')
    assert str(error) == (
        "The parameter 'model' is missing. The parameter 'number' is wrong: got 0, expected "
        "greater than or equal to 1. The parameter 'other' is unknown."
    )
    assert error.param == "model"


def test_a_wrong_value_in_a_union_is_told_once_with_its_place():
    error = refused(b'{"model": "m", "texts": ["a", 3]}')
    assert error.param == "texts"
    assert "texts[1]" in str(error)
    assert "got 3" in str(error)


def test_what_a_union_or_a_list_expects_is_said_in_full():
    assert str(refused(b'{"model": "m", "texts": 3}')) == (
        "The parameter 'texts' is wrong: got 3, expected a valid string or a valid list."
    )
    error = refused(b'{"model": "m", "entries": []}')
    assert str(error) == "The parameter 'entries' is wrong: got [], expected at least 1 entry."


def test_a_long_value_is_cut():
    error = refused(b'{"model": "m", "number": "' + b"9" * 200 + b'"}')
    assert len(str(error)) < 160


@pytest.mark.parametrize("value", ["null", '"red"', "false"])
def test_a_field_that_is_not_supported_may_have_a_value_that_changes_nothing(value):
    assert parse_body(Example, b'{"model": "m", "colour": %s}' % value.encode()).model == "m"


@pytest.mark.parametrize("value", ['"blue"', "0", "true"])
def test_a_field_that_is_not_supported_is_never_ignored(value):
    error = refused(b'{"model": "m", "colour": %s}' % value.encode())
    assert str(error).startswith("The parameter 'colour' is not supported: got ")
    assert str(error).endswith(" Paint it yourself.")
    assert (error.param, error.code) == ("colour", "unsupported_parameter")
