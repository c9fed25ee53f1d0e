"""Lines that call a served model from a shell or from Python, to copy."""

from __future__ import annotations

import json
import shlex
from typing import Any

from lorakit.config import TaskType
from lorakit.serving.clients.candidates import Candidate, Question
from lorakit.serving.clients.talking import AnswerOptions


def curl_call(
    url: str, key: str, candidate: Candidate, question: Question, options: AnswerOptions
) -> str:
    """Return a command that asks a model.

    Args:
        url: Address of the server with its path, such as "http://127.0.0.1:8800/v1".
        key: Key that the server needs.
        candidate: The model.
        question: What to ask it.
        options: How a written answer is generated.
    """
    path = _path(candidate)
    body = json.dumps(_body(candidate, question, options), ensure_ascii=False)
    return (
        f"curl {shlex.quote(f'{url}/{path}')} -H {shlex.quote(f'Authorization: Bearer {key}')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def python_call(
    url: str, key: str, candidate: Candidate, question: Question, options: AnswerOptions
) -> str:
    """Return lines of Python that ask a model, with OpenAI's client where it has such a call.

    Takes the arguments of `curl_call`.
    """
    body = _body(candidate, question, options)
    if "input" in body:
        return (
            "import requests\n\n"
            f"answer = requests.post(\n    {url + '/classify'!r},\n"
            f"    headers={{'Authorization': {f'Bearer {key}'!r}}},\n    json={body!r},\n)\n"
            "print(answer.json())"
        )
    is_chat = "messages" in body
    call, end = ("chat.completions", ".message.content") if is_chat else ("completions", ".text")
    words = ", ".join(f"{name}={value!r}" for name, value in body.items())
    return (
        "import openai\n\n"
        f"client = openai.OpenAI(base_url={url!r}, api_key={key!r})\n"
        f"answer = client.{call}.create({words})\n"
        f"print(answer.choices[0]{end})"
    )


def _path(candidate: Candidate) -> str:
    if candidate.task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        return "classify"
    return "chat/completions" if candidate.form == "conversation" else "completions"


def _body(candidate: Candidate, question: Question, options: AnswerOptions) -> dict[str, Any]:
    """Return the JSON of a request that asks what the playground asks."""
    model = {"model": candidate.name}
    path = _path(candidate)
    if path == "classify":
        pair = [[question.text, question.second]]
        return {**model, "input": pair if candidate.takes_pairs else [question.text]}
    if path == "chat/completions":
        asked = {"messages": question.messages}
    else:
        asked = {"prompt": question.prompt_for(candidate)}
    sampling = {
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    return {**model, **asked, **sampling}
