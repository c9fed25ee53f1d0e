"""Models of a running server: lorakit's, or another one that speaks OpenAI's protocol.

This module imports neither torch nor transformers, so that a client starts at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2

from lorakit.errors import ConfigError, ServerError, first_line
from lorakit.serving.clients.talking import (
    AnswerOptions,
    End,
    Form,
    Listed,
    Message,
    form_of,
    last_question,
)

_CONNECT_S, _READ_S = 10.0, 600.0
_DEFAULT_NEW_TOKENS = 256
_NO_TEMPLATE = "no_chat_template"
_TOO_LONG = "context_length_exceeded"
NO_LABEL = "(none)"
"""Shown for a text that has none of several labels."""
_LOOPBACK = re.compile(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)")
_SHOWN = 300


class Classified(NamedTuple):
    """The label of a text, or its labels or numbers."""

    label: str
    probability: float | None
    """None for several labels and for numbers."""


class Tagged(NamedTuple):
    """A word and its tag."""

    word: str
    tag: str
    probability: float


def parse_classes(answer: Mapping[str, Any]) -> Classified:
    """Return a label, several labels or numbers from the answer of a server for one text."""
    if "values" in answer:
        return Classified(", ".join(f"{number:.6g}" for number in answer["values"].values()), None)
    if "labels" in answer:
        return Classified(", ".join(answer["labels"]) or NO_LABEL, None)
    return Classified(answer["label"], answer["probability"])


def is_url(text: str) -> bool:
    """Return whether a text is the address of a server.

    >>> is_url("http://localhost:8000"), is_url("runs/german")
    (True, False)
    """
    return text.lower().startswith(("http://", "https://"))


def server_url(text: str) -> str:
    """Return an address without its path `/v1`.

    Raises:
        ConfigError: It is no address of a server.

    >>> server_url("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    url = text.rstrip("/").removesuffix("/v1")
    try:
        has_host = is_url(url) and bool(httpx2.URL(url).host)
    except httpx2.InvalidURL:
        has_host = False
    if not has_host:
        raise ConfigError(
            f"Not the address of a server: got {text!r}, expected one such as "
            "http://localhost:8000. Write it with http:// or https://."
        )
    return url


class RemoteModels:
    """The models of one server. All methods but `__init__` run in one event loop."""

    def __init__(self, url: str, key: str | None = None):
        """Prepare calls; nothing is sent yet.

        Args:
            url: Address of the server, with or without /v1.
            key: Its API key, if it needs one.

        Raises:
            ConfigError: The address is none.
        """
        self.url = server_url(url)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S),
            trust_env=_LOOPBACK.match(self.url) is None,  # no proxy leads to this machine
        )
        self._forms: dict[str, Form] = {}
        """Forms that the server has told, or that were found out by asking."""

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    # ---- what there is ----

    async def list_models(self) -> Sequence[Listed]:
        """Return the bases and adapters, the bases first.

        Raises:
            ServerError: The server cannot be reached, or does not speak OpenAI's protocol.
        """
        models = (await self._json("/v1/models")).get("data")
        if not isinstance(models, list) or not all(
            isinstance(each, dict) and isinstance(each.get("id"), str) for each in models
        ):
            raise ServerError(
                f"The server at {self.url} does not list its models: expected OpenAI's protocol "
                "at /v1/models. Check the address."
            )
        listed = [
            Listed(
                each["id"],
                each.get("parent") is None,
                each.get("task"),
                each.get("problem"),
            )
            for each in models
        ]
        return sorted(listed, key=lambda each: not each.is_base)

    async def form(self, name: str) -> Form:
        """Return what a model takes; a server that does not say has conversations.

        Raises:
            ServerError: The server cannot be reached.
        """
        if name not in self._forms:
            self._forms[name] = form_of((await self._describe(name)).get("format"))
        return self._forms[name]

    async def takes_pairs(self, name: str) -> bool:
        """Return whether a classifier takes pairs of texts.

        Raises:
            ServerError: The server cannot be reached.
        """
        return bool((await self._describe(name)).get("text_pair"))

    async def _describe(self, name: str) -> dict[str, Any]:
        try:
            return await self._json(f"/v1/models/{quote(name)}")
        except ServerError as error:
            if error.code is None:
                raise
            return {}  # not every server describes single models

    # ---- answers ----

    async def answer(
        self, name: str, messages: Sequence[Message], options: AnswerOptions, *, form_like: str
    ) -> AsyncIterator[str | End]:
        """Yield the pieces of an answer, and its end; see `TalkingModels.answer`."""
        if await self.form(form_like) == "conversation":
            body = {"model": name, "messages": list(messages), **_sampling(options)}
            try:
                async for part in self._stream("/v1/chat/completions", body):
                    yield part
                return
            except ServerError as error:
                if error.code != _NO_TEMPLATE or name != form_like:
                    raise
            self._forms[name] = "text"
        prompt = await self._prompt(form_like, last_question(messages))
        body = {"model": name, "prompt": prompt, **_sampling(options)}
        body.setdefault("max_tokens", _DEFAULT_NEW_TOKENS)
        async for part in self._stream("/v1/completions", body):
            yield part

    async def _prompt(self, name: str, question: str) -> str:
        if await self.form(name) == "text":
            return question
        from lorakit.data.text_formats import alpaca_prompt  # imports transformers

        return alpaca_prompt(question)

    async def whole_answer(
        self, name: str, text: str, options: AnswerOptions, *, form_like: str
    ) -> str:
        """Return the answer to a single text."""
        messages = [{"role": "user", "content": text}]
        answer = self.answer(name, messages, options, form_like=form_like)
        return "".join([part async for part in answer if isinstance(part, str)])

    async def write(self, name: str, text: str, options: AnswerOptions) -> str:
        """Return what a sequence-to-sequence model writes about a text."""
        body = {"model": name, "prompt": text, **_sampling(options)}
        return (await self._json("/v1/completions", body))["choices"][0]["text"]

    async def classify(
        self, name: str, inputs: Sequence[str | tuple[str, str]]
    ) -> list[Classified]:
        """Return the labels of texts, or of pairs of texts."""
        given = [each if isinstance(each, str) else list(each) for each in inputs]
        data = (await self._json("/v1/classify", {"model": name, "input": given}))["data"]
        return [parse_classes(each) for each in data]

    async def tag(self, name: str, texts: Sequence[str]) -> list[list[Tagged]]:
        """Return the tagged words of texts."""
        body = {"model": name, "input": list(texts)}
        data = (await self._json("/v1/classify", body))["data"]
        return [
            [Tagged(word["text"], word["label"], word["probability"]) for word in each["words"]]
            for each in data
        ]

    # ---- requests ----

    async def _json(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer to a body, or to GET without one."""
        try:
            method = "GET" if body is None else "POST"
            response = await self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx2.codes.OK:
            raise self._refusal(response)
        found = _parse(response.content)
        if not isinstance(found, dict):
            raise ServerError(
                f"The server at {self.url} answered {path} with something else than a JSON object: "
                f"got {_shorten(response.text)!r}. Check the address."
            )
        return found

    async def _stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[str | End]:
        is_finished = False
        try:
            async with self._http.stream("POST", path, json={**body, "stream": True}) as response:
                if response.status_code != httpx2.codes.OK:
                    await response.aread()
                    raise self._refusal(response)
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    for part in self._parts(data):
                        is_finished = is_finished or isinstance(part, End)
                        yield part
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if not is_finished:
            raise ServerError(
                f"The server at {self.url} ended the answer before it was complete. Ask again; its "
                "log may have the reason."
            )

    def _parts(self, data: str) -> list[str | End]:
        """Return what an event of a stream adds to the answer."""
        event = _parse(data.encode()) if data else {}
        if not isinstance(event, dict):
            raise ServerError(
                f"The server at {self.url} sent an event that is not a JSON object: got "
                f"{_shorten(data)!r}. Check that it speaks OpenAI's protocol."
            )
        if event.get("error"):
            raise ServerError(f"The server at {self.url} failed: {_reason(event['error'])}")
        parts: list[str | End] = []
        for choice in event.get("choices") or []:
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            parts += [text] if text else []
            parts += [End(choice["finish_reason"])] if choice.get("finish_reason") else []
        return parts

    def _refusal(self, response: httpx2.Response) -> ServerError:
        found = _parse(response.content)
        error = found.get("error", found) if isinstance(found, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        status = response.status_code
        reason = _reason(error or _shorten(response.text) or response.reason_phrase)
        if status == httpx2.codes.UNAUTHORIZED:
            reason += " The key is read from LORAKIT_API_KEY, or from --api-key-file."
        if code == _TOO_LONG:
            reason += " In a chat, /clear begins a new conversation."
        return ServerError(
            f"The server at {self.url} refused the request ({status}): {reason}",
            code=code if isinstance(code, str) else str(status),
        )

    def _unreachable(self, error: httpx2.HTTPError) -> ServerError:
        reason = "it took too long" if isinstance(error, httpx2.TimeoutException) else None
        return ServerError(
            f"The server at {self.url} does not answer: {reason or first_line(error)}. Check that "
            "it runs and that the address is right.",
        )


def _sampling(options: AnswerOptions) -> dict[str, Any]:
    most = options.max_new_tokens
    values: dict[str, Any] = {} if most is None else {"max_tokens": most}
    values |= {"temperature": options.temperature, "seed": options.seed}
    return values | ({"top_p": options.top_p} if options.top_p < 1 else {})


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _reason(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return _shorten(str(message or error))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
