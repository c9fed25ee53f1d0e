"""The entrance without Ray: replicas are objects that answer, fail or end."""

import asyncio
import subprocess
import sys
from contextlib import contextmanager

import pytest
from starlette.requests import Request

from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.limits import Limits
from lorakit.serving.http.metrics import Metrics
from lorakit.serving.http.relay import CarriedRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic

START = {"type": "http.response.start", "status": 200, "headers": []}


def part(body, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


class Answers:
    """What one call of a replica gives: messages, then an error or the end."""

    def __init__(self, *messages, error=None):
        self.messages, self.error, self.is_cancelled = messages, error, False

    async def __aiter__(self):
        for message in self.messages:
            yield [message]
        if self.error is not None:
            raise self.error

    def cancel(self):
        self.is_cancelled = True


class Replicas:
    """Stands for the way to the replicas; each call takes the next answers."""

    def __init__(self, *answers, all_answers=()):
        self.left, self.calls, self.all_answers = list(answers), [], list(all_answers)
        self.answer = self

    def options(self, **options):
        self.wanted = options
        return self

    def remote(self, *arguments):
        self.calls.append(arguments)
        return self.left.pop(0)

    def broadcast(self, method):
        from types import SimpleNamespace

        async def results_async(return_exceptions):
            return self.all_answers

        return SimpleNamespace(results_async=results_async)


def ended():
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


def relay(replicas, body=b'{"model": "german"}'):
    from lorakit.serving.ray_deployment.entrance import Changes, Relayed

    sent = []

    async def send(message):
        sent.append(message)

    request = CarriedRequest({"type": "http", "path": "/v1/completions"}, body)
    relayed = Relayed(replicas, request, Changes(), "base")
    asyncio.run(relayed(request.scope, None, send))
    return sent


def test_another_replica_answers_if_nothing_was_sent_yet():
    first = Answers(START, error=ended())
    replicas = Replicas(first, Answers(START, part(b"text", more=False)))
    assert relay(replicas) == [START, part(b"text", more=False)]
    assert len(replicas.calls) == 2 and first.is_cancelled
    assert replicas.wanted == {"stream": True, "multiplexed_model_id": "german"}


def test_the_base_needs_no_adapter():
    replicas = Replicas(Answers(START, part(b"", more=False)))
    relay(replicas, b'{"model": "base"}')
    assert replicas.wanted["multiplexed_model_id"] == ""


def test_a_stream_that_has_begun_ends_with_an_error():
    sent = relay(Replicas(Answers(START, part(b"data: 1\n\n"), error=ended())))
    assert sent[:2] == [START, part(b"data: 1\n\n")]
    assert b"The replica that answered has ended" in sent[2]["body"]
    assert not sent[2]["more_body"]


def test_replicas_that_all_end_are_a_503():
    sent = relay(Replicas(*(Answers(error=ended()) for _ in range(3))))
    assert sent[0]["status"] == 503 and b"retry-after" in dict(sent[0]["headers"])
    assert b"replica_ended" in sent[1]["body"]


def test_an_error_of_a_replica_is_a_500_and_is_not_tried_again():
    from ray.exceptions import RayTaskError

    failed = RayTaskError("answer", "Traceback ...", ValueError("secret"))
    sent = relay(Replicas(Answers(error=failed)))
    assert sent[0]["status"] == 500 and b"secret" not in sent[1]["body"]
    whole = [START, part(b"text", more=False)]
    assert relay(Replicas(Answers(*whole, error=failed))) == whole


def ask(entrance, path, method="POST", body=b"{}", key=None):
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    scope |= {"query_string": b"", "scheme": "http", "server": ("x", 1)}
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(entrance._answer(Request(scope, receive).scope, receive, send))
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent)


@contextmanager
def entrance_of(*answers, all_answers=(), keys=(), limits=None):
    from lorakit.serving.ray_deployment.entrance import Entrance

    plain = Entrance.__mro__[1]  # without what Ray puts around it
    replicas = Replicas(*answers, all_answers=all_answers)
    yield plain(ApiKeys(keys), limits or Limits(), "base", replicas), replicas


def test_keys_and_sizes_are_checked_before_a_replica_is_asked():
    with entrance_of(keys=["a-long-key"], limits=Limits(body_bytes=4)) as (entrance, replicas):
        assert ask(entrance, "/v1/completions")[0] == 401
        assert ask(entrance, "/metrics", "GET")[0] == 401
        assert ask(entrance, "/v1/completions", body=b"12345", key="a-long-key")[0] == 413
        assert not replicas.calls


def test_more_requests_than_connections_are_a_503():
    with entrance_of(limits=Limits(connections=2)) as (entrance, _):
        entrance._running = 2
        status, text = ask(entrance, "/v1/completions")
        assert status == 503 and b"got 3, expected at most 2" in text
        assert entrance._running == 2


def test_without_a_replica_the_answer_is_503():
    with entrance_of(all_answers=[ended()]) as (entrance, _):
        status, text = ask(entrance, "/v1/completions")
        assert status == 503 and b"replica_ended" in text


def test_a_change_is_kept_if_a_replica_made_it():
    from lorakit.serving.ray_deployment.entrance import Changes

    before = Changes(3, {"old": None})
    refused = {**START, "status": 404}
    ok = (START, part(b"done", more=False))
    answers = [Answers(*ok), Answers(refused, part(b"no", more=False)), Answers(*ok)]
    with entrance_of(*answers, all_answers=[Changes(), before]) as (entrance, replicas):
        body = b'{"lora_name": "new", "lora_path": "a"}'
        assert ask(entrance, "/v1/load_lora_adapter", body=body) == (200, b"done")
        after = Changes(4, {"old": None, "new": "a"})
        assert replicas.calls[0][1:] == (before, after)
        assert ask(entrance, "/v1/unload_lora_adapter", body=b'{"lora_name": "x"}')[0] == 404
        assert ask(entrance, "/v1/models", "GET")[0] == 200
        assert replicas.calls[2][1:] == (after, None)


def test_an_entrance_that_ends_refuses_new_requests():
    with entrance_of(Answers(START, part(b"ok", more=False)), all_answers=[ended()]) as (it, _):
        from lorakit.serving.ray_deployment.entrance import Changes

        it._changes = Changes()
        assert asyncio.run(it.finish(1.0)) == 0
        assert ask(it, "/v1/completions")[0] == 503
        assert ask(it, "/health", "GET")[0] == 200
        it._running = 2
        assert asyncio.run(it.finish(0.0)) == 2


def test_figures_of_several_servers_differ_by_a_label():
    from lorakit.serving.ray_deployment.entrance import merge_texts

    servers = {"a": Metrics(), "b": Metrics()}
    servers["a"].count("german", "/v1/completions", 200, 0.3, 5, 7)
    servers["b"].count("german", "/v1/completions", 200, 0.1, 2, 0)
    text = merge_texts({name: metrics.text() for name, metrics in servers.items()}).decode()
    labels = 'model="german",path="/v1/completions",replica="{}",status="200"'
    for name in servers:
        assert f"lorakit_requests_total{{{labels.format(name)}}} 1.0" in text
    assert 'lorakit_tokens_total{direction="input",model="german",replica="b"} 2.0' in text
    assert 'lorakit_request_seconds_sum{path="/v1/completions",replica="a"} 0.3' in text
    assert text.count("# TYPE lorakit_requests_total counter") == 1


def test_it_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from lorakit.serving.ray_deployment import entrance, router; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert found.stdout.strip() == b"set()", found.stderr
