"""The door in front of every address of the studio, also of its web socket and static files."""

from __future__ import annotations

import asyncio
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lorakit.serving.http.errors import error_response
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.refusals import RequestError
from lorakit.studio.access import COOKIE_DAYS, Access

DOOR, API = "/access", "/v1/"
_DAY_S = 86_400
_PAUSE_AFTER_WRONG_S = 1.0
_MOST_FORM_BYTES = 4096
_UNSAFE_METHODS = ("POST", "PUT", "PATCH", "DELETE")

_POLICY = (
    # Nothing is fetched from another host; Vue compiles templates in the browser, hence eval.
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Gate:
    """ASGI application that lets admitted browsers and programs through to two others."""

    def __init__(self, app: ASGIApp, access: Access, api: ASGIApp):
        """Create the door.

        Args:
            app: Application behind it, for browsers with a cookie.
            access: Decides who is admitted.
            api: What answers below /v1, for programs with the key; a cookie does not admit there,
                so that no page of another site can use it.
        """
        self.app = app
        self._access, self._api = access, api
        self._keys = ApiKeys([access.api_key])
        self._one_guess = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at the door, or pass the request on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = Request({**scope, "type": "http"}, receive)
        is_admitted = self._access.is_admitted(request.cookies.get(self._access.cookie_name))
        if scope["type"] == "websocket":
            if is_admitted and _is_from_here(request):
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 4403, "reason": "not admitted"})
            return
        sending = _with_headers(send)
        if request.url.path.startswith(API):
            answer = self._refuse(request) or self._api
        elif request.url.path == DOOR:
            answer = await self._answer(request, is_admitted)
        elif not is_admitted:
            answer = _door_page(self._access, _target_after_login(request), 401)
        elif request.method in _UNSAFE_METHODS and not _is_from_here(request):
            answer = Response("This request comes from another site.", 403)
        else:
            await self.app(scope, receive, sending)
            return
        await answer(scope, receive, sending)

    def _refuse(self, request: Request) -> Response | None:
        """Return the answer to a program without the key."""
        try:
            self._keys.caller(request.headers.get("authorization"))
        except RequestError as error:
            return error_response(error)
        return None

    async def _answer(self, request: Request, is_admitted: bool) -> Response:
        """Admit a browser that has the link or the password."""
        if request.method == "POST":
            form = await _read_form(request)
            to = _safe_target(form.get("to", ""))
            async with self._one_guess:
                if self._access.is_password(form.get("password", "")):
                    return self._admit(request, to)
                await asyncio.sleep(_PAUSE_AFTER_WRONG_S)
            return _door_page(self._access, to, 401, "This is not the password. Try again.")
        to = _safe_target(request.query_params.get("to", ""))
        token = request.query_params.get("token", "")
        if token and self._access.redeem(token):
            return self._admit(request, to)
        if is_admitted:
            return RedirectResponse(to, 303)
        problem = "This link has been used already, or is wrong." if token else ""
        return _door_page(self._access, to, 401, problem)

    def _admit(self, request: Request, to: str) -> Response:
        answer = RedirectResponse(to, 303)
        answer.set_cookie(
            self._access.cookie_name,
            self._access.issue(),
            max_age=COOKIE_DAYS * _DAY_S,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return answer


def _with_headers(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sending


def _is_from_here(request: Request) -> bool:
    """Return whether a page of this studio sent the request, if a page did."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _target_after_login(request: Request) -> str:
    is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    query = f"?{request.url.query}" if request.url.query else ""
    return _safe_target(request.url.path + query) if is_page else "/"


def _safe_target(to: str) -> str:
    r"""Return an address of this studio; another site's becomes the first page.

    >>> _safe_target("/run/a?x=1"), _safe_target("//evil"), _safe_target("/\\evil")
    ('/run/a?x=1', '/', '/')
    """
    is_here = to.startswith("/") and not to.startswith(("//", "/\\", DOOR)) and to.isprintable()
    return to if is_here else "/"


async def _read_form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", errors="replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def _door_page(access: Access, to: str, status: int, problem: str = "") -> HTMLResponse:
    if access.needs_password:
        body = (
            f'<form method="post" action="{DOOR}">'
            f'<input type="hidden" name="to" value="{escape(to)}">'
            '<label for="password">Password</label>'
            '<input id="password" name="password" type="password" required autofocus '
            'autocomplete="current-password"><button>Open</button></form>'
        )
    else:
        body = (
            "<p>Open the link that <code>lorakit studio</code> printed last in its terminal. Each "
            "link works once; the terminal shows a new one after each use.</p>"
        )
    shown = f'<p role="alert" class="problem">{escape(problem)}</p>' if problem else ""
    return HTMLResponse(_PAGE.format(problem=shown, body=body), status)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>lorakit studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 18vh auto; padding: 0 1rem;
  color: light-dark(#1c2230, #e6e9f0); background: light-dark(#f6f7f9, #14171d); }}
h1 {{ font-size: 1.35rem; }}
label {{ display: block; margin-bottom: .25rem; }}
input, button {{ font: inherit; padding: .5rem .75rem; border-radius: 6px;
  border: 1px solid #7a8497;
  width: 100%; box-sizing: border-box; margin-bottom: .75rem; }}
button {{ background: #3346b8; border-color: #3346b8; color: #fff; cursor: pointer; }}
.problem {{ color: light-dark(#a3202c, #ff9a9f); }}
</style></head>
<body><main><h1>lorakit studio</h1>{problem}{body}</main></body></html>
"""
