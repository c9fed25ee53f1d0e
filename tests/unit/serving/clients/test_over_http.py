"""A client against a real server on loopback, and against servers that misbehave."""

import json
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from lorakit.errors import ConfigError, ServerError
from lorakit.serving.clients.event_loop import LoopThread
from lorakit.serving.clients.over_http import RemoteModels, server_url
from lorakit.serving.clients.talking import AnswerOptions, End

MESSAGES = [{"role": "user", "content": "what colour is the sky"}]
GREEDY = AnswerOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def loop():
    with closing(LoopThread()) as made:
        yield made


@contextmanager
def models_at(loop, url, key=None):
    models = RemoteModels(url, key)
    try:
        yield models
    finally:
        loop.run(models.close())


@pytest.fixture
def models(loop, served):
    with models_at(loop, served.server.url) as made:
        yield made


def items_of(loop, models, name, messages=MESSAGES, options=GREEDY, like=None):
    stream = models.answer(name, messages, options, form_like=like or name)
    return [item for _, item in loop.merge([stream]) if item is not None]


def text_of(items):
    assert isinstance(items[-1], End), items
    return "".join(items[:-1])


# ---- lorakit's server ----


def test_the_base_is_listed_first_then_adapters_with_their_tasks(loop, models):
    base, *adapters = loop.run(models.list_models())
    assert (base.name, base.is_base) == ("base", True)
    assert {each.name: each.task for each in adapters} == {
        "french": "CAUSAL_LM",
        "german": "CAUSAL_LM",
        "mood": "SEQ_CLS",
        "pairs": "SEQ_CLS",
        "tags": "TOKEN_CLS",
    }


def test_a_streamed_answer_is_the_whole_one(loop, models, served):
    body = {"model": "german", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    whole = served.post("/v1/chat/completions", body)["choices"][0]
    items = items_of(loop, models, "german")
    assert text_of(items) == whole["message"]["content"]
    assert items[-1].reason == whole["finish_reason"]
    assert text_of(items_of(loop, models, "base")) != text_of(items)


def test_an_adapter_for_texts_continues_the_text_beside_the_base(loop, models, served):
    settings = served.folder / "french" / "lorakit.json"
    settings.write_text(json.dumps({"task_type": "CAUSAL_LM", "format": "text"}))
    try:
        assert loop.run(models.form("french")) == "text"
        for name in ("french", "base"):
            body = {"model": name, "prompt": MESSAGES[0]["content"], "max_tokens": 6}
            whole = served.post("/v1/completions", {**body, "temperature": 0})["choices"][0]
            assert text_of(items_of(loop, models, name, like="french")) == whole["text"]
    finally:
        settings.unlink()


def test_classes_and_tags_come_with_probabilities(loop, models):
    (found,) = loop.run(models.classify("mood", ["a good film"]))
    assert found.label in ("bad", "good", "mixed") and 0 < found.probability <= 1
    assert loop.run(models.takes_pairs("pairs")) and not loop.run(models.takes_pairs("mood"))
    (pair,) = loop.run(models.classify("pairs", [("the sky", "the sun")]))
    assert pair.label in ("other", "same")
    (words,) = loop.run(models.tag("tags", ["Anna lives in Oslo"]))
    assert [each.word for each in words] == ["Anna", "lives", "in", "Oslo"]


def test_a_refusal_has_the_servers_reason(loop, models):
    (error,) = items_of(loop, models, "nobody")
    assert isinstance(error, ServerError) and error.code == "model_not_found"
    assert "refused the request (404): No model 'nobody'" in str(error)
    long = [{"role": "user", "content": "the grass is green " * 60}]
    (error,) = items_of(loop, models, "german", long)
    assert error.code == "context_length_exceeded"
    assert str(error).endswith("In a chat, /clear begins a new conversation.")


def test_a_key_is_sent_and_a_missing_one_is_told(loop, served_with):
    url = served_with(api_keys=["the-right-key"]).server.url
    with models_at(loop, url, "the-right-key") as models:
        assert loop.run(models.list_models())
    with models_at(loop, url) as models, pytest.raises(ServerError, match="from LORAKIT_API_KEY"):
        loop.run(models.list_models())


# ---- other servers ----


@contextmanager
def answering(*answers):
    """Answer requests in turn with (status, content type, body); the last one again and again."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, kind, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


NOT_FOUND = (404, "application/json", '{"detail": "Not Found"}')
NO_TEMPLATE = (
    400,
    "application/json",
    '{"error": {"message": "none", "code": "no_chat_template"}}',
)
EVENTS = "text/event-stream"


def completion(*texts, reason="stop", end="data: [DONE]\n\n"):
    choices = [{"text": text, "finish_reason": None} for text in texts]
    choices += [{"text": "", "finish_reason": reason}] if reason else []
    lines = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]
    return (200, EVENTS, ": a comment\n\n" + "".join(lines) + end)


def test_a_model_without_a_chat_template_continues_the_text(loop):
    with (
        answering(NOT_FOUND, NO_TEMPLATE, completion("the sky", " is")) as url,
        models_at(loop, url) as models,
    ):
        assert text_of(items_of(loop, models, "m")) == "the sky is"
        assert loop.run(models.form("m")) == "text"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion("half", reason=None, end=""), "ended the answer before it was complete"),
        ((200, EVENTS, "data: <html>\n\n"), "an event that is not a JSON object: got '<html>'"),
        ((200, EVENTS, 'data: {"error": {"message": "no memory"}}\n\n'), "failed: no memory"),
        ((502, "text/html", "<h1>Bad\n gateway</h1>"), r"\(502\): <h1>Bad gateway</h1>"),
    ],
)
def test_what_is_no_answer_is_one_clear_sentence(loop, answer, reason):
    with answering(NOT_FOUND, answer) as url, models_at(loop, url) as models:
        *_, error = items_of(loop, models, "m")
        with pytest.raises(ServerError, match=reason):
            raise error


def test_a_page_is_not_a_list_of_models(loop):
    for body in ('{"data": 3}', "[]", "<html>"):
        with answering((200, "text/html", body)) as url, models_at(loop, url) as models:
            listed = models.list_models()
            with pytest.raises(ServerError, match="Check the address"):
                loop.run(listed)


def test_a_server_that_is_not_there_is_one_sentence(loop):
    with answering(NOT_FOUND) as url:
        pass
    with models_at(loop, url) as models, pytest.raises(ServerError, match="does not answer: "):
        loop.run(models.list_models())


@pytest.mark.parametrize("text", ["localhost:8000", "http://", "http://host:port", "runs/german"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="Not the address of a server"):
        server_url(text)
