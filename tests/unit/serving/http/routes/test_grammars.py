import pytest

MESSAGES = [{"role": "user", "content": "sky"}]


def asked(schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": "german", "messages": MESSAGES, "response_format": wanted}


@pytest.mark.parametrize(
    "schema", [{"type": "colour"}, {"$ref": "#/gone"}, {"type": "string", "pattern": "("}]
)
def test_a_schema_that_cannot_be_kept_to_is_refused(served, schema):
    error = served.post("/v1/chat/completions", asked(schema), 400)
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert error["message"].startswith("The schema of response_format cannot be used: ")


def test_answers_of_one_request_move_through_their_grammars_alone(served):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}
    made = served.post("/v1/chat/completions", asked(schema) | {"n": 4, "temperature": 2})
    for choice in made["choices"]:
        assert choice["message"]["content"].strip("[]").replace(",", "").strip("12") == ""
        assert choice["finish_reason"] == "stop"


def test_an_object_may_have_anything(served):
    body = asked({}) | {"response_format": {"type": "json_object"}, "max_tokens": 6}
    made = served.post("/v1/chat/completions", body)
    assert made["choices"][0]["message"]["content"].startswith("{")
