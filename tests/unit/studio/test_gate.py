"""The door in front of every address."""

import httpx
import pytest
from starlette.responses import PlainTextResponse

from lorakit.studio.access import Access
from lorakit.studio.gate import Gate

pytestmark = pytest.mark.anyio
PAGE = {"accept": "text/html"}


async def behind(scope, receive, send):
    """An application that answers everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await PlainTextResponse("secret")(scope, receive, send)


def made(password=None):
    access = Access(b"k" * 32, "cookie", password)
    gate = Gate(behind, access, PlainTextResponse("a model's answer"))
    return (
        access,
        gate,
        httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://here"),
    )


async def test_nothing_is_seen_without_a_cookie():
    _, _, client = made()
    for method, path in (("GET", "/"), ("POST", "/_nicegui/x"), ("GET", "/access"), ("HEAD", "/a")):
        answer = await client.request(method, path)
        assert answer.status_code == 401 and "secret" not in answer.text


async def test_a_link_leads_to_the_page_that_was_wanted():
    access, _, client = made()
    answer = await client.get("/access", params={"token": access.token, "to": "/run/a?x=1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/run/a?x=1")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    answer = await client.get("/run/a")
    assert answer.text == "secret"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert (await client.get("/access?token=used")).headers["location"] == "/"


@pytest.mark.parametrize("to", ["//evil.org", "https://evil.org", "/\\evil", "/access?x", "a\nb"])
async def test_no_link_leads_to_another_site(to):
    access, _, client = made()
    answer = await client.get("/access", params={"token": access.token, "to": to})
    assert answer.headers["location"] == "/"


async def test_a_password_admits_and_a_wrong_one_waits(monkeypatch):
    monkeypatch.setattr("lorakit.studio.gate._PAUSE_AFTER_WRONG_S", 0.01)
    _, _, client = made("correct horse")
    answer = await client.get("/compare?runs=a", headers=PAGE)
    assert 'value="/compare?runs=a"' in answer.text and "Password" in answer.text
    answer = await client.post("/access", data={"password": "wrong", "to": "/x"})
    assert answer.status_code == 401 and "This is not the password" in answer.text
    answer = await client.post("/access", data={"password": "x" * 9000})
    assert answer.status_code == 401
    answer = await client.post("/access", data={"password": "correct horse", "to": "/x"})
    assert answer.headers["location"] == "/x"
    assert (await client.get("/x")).text == "secret"


async def test_what_is_shown_again_is_escaped():
    _, _, client = made("correct horse")
    answer = await client.get('/"><script>alert(1)</script>', headers=PAGE)
    assert "<script>alert" not in answer.text


async def test_another_site_cannot_act_with_the_cookie():
    access, _, client = made()
    client.cookies.set("cookie", access.issue())
    assert (await client.post("/x", headers={"origin": "http://evil"})).status_code == 403
    assert (await client.post("/x", headers={"origin": "http://here"})).status_code == 200
    assert (await client.post("/x")).status_code == 200


@pytest.mark.parametrize(
    ("has_cookie", "origin", "kind"),
    [
        (False, b"http://here", "websocket.close"),
        (True, b"http://evil", "websocket.close"),
        (True, b"http://here", "websocket.accept"),
    ],
)
async def test_a_web_socket_needs_the_cookie_and_this_site(has_cookie, origin, kind):
    access, gate, _ = made()
    cookie = f"cookie={access.issue()}" if has_cookie else "cookie=x"
    headers = [(b"host", b"here"), (b"origin", origin), (b"cookie", cookie.encode())]
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": headers}
    await gate(scope, receive, send)
    assert sent == [kind]


async def test_a_program_with_the_key_reaches_the_models_and_nothing_else():
    access, _, client = made()
    key = {"authorization": f"Bearer {access.api_key}"}
    answer = await client.post("/v1/chat/completions", headers=key)
    assert answer.text == "a model's answer"
    for path in ("/", "/v1", "/run/v1/", "/metrics", "/_nicegui/x"):
        assert (await client.get(path, headers=key)).status_code == 401


@pytest.mark.parametrize("given", [None, "Bearer ", "Bearer wrong", "Basic {}", "{}"])
async def test_a_program_without_the_key_gets_an_error_as_openai_has_it(given):
    access, _, client = made()
    client.cookies.set("cookie", access.issue())  # of a browser, which another site may use
    headers = {} if given is None else {"authorization": given.format(access.api_key)}
    answer = await client.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
