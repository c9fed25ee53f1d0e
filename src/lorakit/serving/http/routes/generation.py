"""Asking for answers, and collecting them or passing them on as they are written."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lorakit.serving.answers import Answers
from lorakit.serving.http.call import Call
from lorakit.serving.requests import Finished, GenerationRequest, NewText, Sampling, TokenLogprob
from lorakit.serving.served_model import ServedModel
from lorakit.serving.store import Lease
from lorakit.serving.text_side import TextSide


@dataclass(frozen=True)
class Prompt:
    """A prompt, and how each of its answers is sampled."""

    ids: Sequence[int]
    samplings: Sequence[Sampling]


@dataclass
class Usage:
    """Tokens of a request."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class Choice:
    """One finished answer."""

    text: str = ""
    reason: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


class Asked:
    """The answers to the prompts of one call.

    Attributes:
        text: The adapter's tokenizer and format.
        usage: Tokens so far; complete at the end.
        choices: Number of answers.
    """

    def __init__(self, call: Call, text: TextSide, prompts: Sequence[Prompt], answers: Answers):
        self.text = text
        self.usage = Usage(prompt=sum(len(prompt.ids) for prompt in prompts))
        self.choices = sum(len(prompt.samplings) for prompt in prompts)
        self._call = call
        self._answers = answers
        counts = (len(prompt.samplings) for prompt in prompts[:-1])
        self._first_choices = set(accumulate(counts, initial=0))
        self._texts = [""] * self.choices
        call.input_tokens = self.usage.prompt

    async def events(self) -> AsyncIterator[tuple[int, NewText | Finished]]:
        """Yield the number of an answer and its next event."""
        async for index, event in self._answers.events():
            if isinstance(event, Finished):
                self._count(index, event)
            else:
                self._call.note_first_token()
                self._texts[index] += event.text
                self.usage.completion += len(event.token_ids)
                self._call.output_tokens = self.usage.completion
            yield index, event

    def _count(self, index: int, event: Finished) -> None:
        if index in self._first_choices:  # OpenAI counts a prompt once
            self.usage.cached += event.cached_tokens
        self._call.noted.setdefault("finish_reasons", []).append(event.reason)
        self._call.note_answer(self._texts[index])

    async def collect(self) -> list[Choice]:
        """Return all answers once they are finished."""
        choices = [Choice() for _ in range(self.choices)]
        async for index, event in self.events():
            choice = choices[index]
            if isinstance(event, Finished):
                choice.reason = event.reason
            else:
                choice.text += event.text
                choice.logprobs += event.logprobs
        return choices


def ask(
    call: Call,
    model: ServedModel,
    lease: Lease,
    text: TextSide,
    prompts: Sequence[Prompt],
    grammars: Sequence[Any] | None = None,
) -> Asked:
    """Ask for the answers to prompts, all or none.

    Args:
        call: The call.
        model: The model.
        lease: The adapter.
        text: Its tokenizer.
        prompts: The prompts.
        grammars: What each answer must keep to.

    Raises:
        LorakitError: The engine's queue is full, or a request can never fit.
    """
    answers = model.answers(lease)
    call.at_end.callback(answers.cancel)
    pairs = [(prompt.ids, sampling) for prompt in prompts for sampling in prompt.samplings]
    for number, (ids, sampling) in enumerate(pairs):
        answers.ask(
            GenerationRequest(
                prompt=tuple(ids),
                adapter=lease.carried_name,
                cache_key=lease.content_hash,
                sampling=sampling,
                grammar=None if grammars is None else grammars[number],
                tokenizer=text.tokenizer,
            )
        )
    return Asked(call, text, prompts, answers)


async def stream(
    choices: AsyncIterator[dict[str, Any]],
    head: dict[str, Any],
    usage: Usage,
    *,
    includes_usage: bool,
) -> AsyncGenerator[str]:
    """Yield the chunks of a response, one for each piece of a choice, and the usage if wanted.

    Args:
        choices: The pieces.
        head: The fields that all chunks have.
        usage: Tokens, complete when the last piece has come.
        includes_usage: Whether the last chunk counts them.
    """
    extra: dict[str, Any] = {"usage": None} if includes_usage else {}
    async for choice in choices:
        yield json.dumps({**head, "choices": [choice], **extra})
    if includes_usage:
        yield json.dumps({**head, "choices": [], "usage": usage.as_json()})


Events = AsyncIterator[tuple[int, NewText | Finished]]


async def after_first(events: Events) -> Events:
    """Return events once the first has come, so that early failures have their status."""
    first = await anext(events)

    async def all_events() -> Events:
        yield first
        async for event in events:
            yield event

    return all_events()
