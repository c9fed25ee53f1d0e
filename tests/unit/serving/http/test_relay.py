import asyncio

import pytest

from lorakit.serving.http.relay import CarriedRequest, answer


def carried(body=b"", **scope):
    return CarriedRequest.of({"type": "http", "path": "/x", "extensions": {}, **scope}, body)


def collect(app, request):
    async def run():
        return [messages async for messages in answer(app, request)]

    return asyncio.run(run())


def test_a_request_keeps_what_applications_read():
    request = carried(method="POST", headers=[(b"a", b"b")], app=object())
    assert request.scope == {
        "type": "http",
        "path": "/x",
        "method": "POST",
        "headers": [(b"a", b"b")],
    }


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "german"}', "german"),
        (b'{"model": 3}', ""),
        (b"[1]", ""),
        (b"{", ""),
        (b"", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_field_of_the_body_is_read_if_there_is_one(body, name):
    assert carried(body).text("model") == name


def test_messages_that_are_ready_come_together():
    async def app(scope, receive, send):
        read = await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": read["body"], "more_body": True})
        await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"end"})

    first, second = collect(app, carried(b"hello"))
    assert [each.get("body") for each in first] == [None, b"hello"]
    assert [each["body"] for each in second] == [b"end"]


def test_an_application_that_fails_fails_its_answer():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        collect(app, carried())


@pytest.mark.parametrize("by_cancelling", [False, True])
def test_an_application_learns_that_its_client_left(by_cancelling):
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200})
        seen.append((await receive())["type"])

    async def leave():
        answers = answer(app, carried())
        await anext(answers)
        if by_cancelling:
            waiting = asyncio.ensure_future(anext(answers))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            await answers.aclose()

    asyncio.run(leave())
    assert seen == ["http.disconnect"]
