"""What the tests with OpenAI's client do not reach: templates, headers, the log."""

import json

import pytest

MESSAGES = [{"role": "user", "content": "what colour is the sky"}]


def asked(**fields):
    return {"model": "german", "messages": MESSAGES, "temperature": 0, "max_tokens": 4} | fields


def test_a_developers_message_is_rendered_as_the_systems(served):
    def tokens(role):
        messages = [{"role": role, "content": "be brief"}, *MESSAGES]
        return served.post("/tokenize", {"model": "german", "messages": messages})["tokens"]

    assert tokens("developer") == tokens("system") != tokens("user")
    answers = [
        served.post("/v1/chat/completions", asked(messages=[{"role": role, "content": "be brief"}]))
        for role in ("developer", "system")
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_variable_of_the_template_reaches_it(served):
    made = served.post(
        "/v1/chat/completions", asked(chat_template_kwargs={"enable_thinking": False})
    )
    assert made["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt"])
def test_a_variable_cannot_change_how_the_prompt_is_made(served, name):
    error = served.post("/v1/chat/completions", asked(chat_template_kwargs={name: True}), 400)
    assert error["param"] == "chat_template_kwargs"
    assert f"got '{name}'" in error["message"]


def test_events_end_with_done_and_the_response_has_its_headers(served):
    with served.http() as http:
        response = http.post("/v1/chat/completions", json=asked(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    events = [line for line in response.text.split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert response.headers["x-request-id"] in chunks[0]["id"]


def test_the_log_has_no_prompt(served):
    served.post("/v1/chat/completions", asked(user="anna", metadata={"job": "7"}))
    served.get("/health")
    line = next(line for line in reversed(served.lines()) if line.get("user") == "anna")
    assert line["model"] == "german" and line["status"] == 200 and line["metadata"] == {"job": "7"}
    assert line["input_tokens"] > 0 and line["output_tokens"] == 4
    assert line["finish_reasons"] == ["length"] and line["first_token_s"] <= line["duration_s"]
    assert "colour" not in served.log.read_text()


def test_the_log_has_prompts_and_answers_where_that_is_wanted(served_with):
    served = served_with(log_prompts=True)
    made = served.post("/v1/chat/completions", asked())
    served.server.stop()
    (line,) = served.lines()
    assert line["prompt"] == MESSAGES
    assert line["answers"] == [made["choices"][0]["message"]["content"]]


def test_a_conversation_longer_than_the_context_names_its_parameter(served):
    messages = [{"role": "user", "content": "sky " * 200}]
    error = served.post("/v1/chat/completions", {"model": "base", "messages": messages}, 400)
    assert error["param"] == "messages" and error["code"] == "context_length_exceeded"
    assert error["message"].startswith("The prompt is too long: got")


# ---- answers that keep to a schema ----


def asked_for(schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": "german", "messages": MESSAGES, "response_format": wanted}


@pytest.mark.parametrize(
    "schema", [{"type": "colour"}, {"$ref": "#/gone"}, {"type": "string", "pattern": "("}]
)
def test_a_schema_that_cannot_be_kept_to_is_refused(served, schema):
    error = served.post("/v1/chat/completions", asked_for(schema), 400)
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")
    assert error["message"].startswith("The schema of response_format cannot be used: ")


def test_answers_of_one_request_move_through_their_grammars_alone(served):
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}
    made = served.post("/v1/chat/completions", asked_for(schema) | {"n": 4, "temperature": 2})
    for choice in made["choices"]:
        assert choice["message"]["content"].strip("[]").replace(",", "").strip("12") == ""
        assert choice["finish_reason"] == "stop"


def test_an_object_may_have_anything(served):
    body = asked_for({}) | {"response_format": {"type": "json_object"}, "max_tokens": 6}
    made = served.post("/v1/chat/completions", body)
    assert made["choices"][0]["message"]["content"].startswith("{")
