"""Models that answer in this process, as the server runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.config import TaskType
from lorakit.data.text_formats import alpaca_prompt
from lorakit.data.tokenizers import decode
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.libraries.hub import is_hub_id
from lorakit.serving.clients.talking import (
    AnswerOptions,
    End,
    Form,
    Listed,
    Message,
    form_of,
    last_question,
)
from lorakit.serving.engine import EngineSettings
from lorakit.serving.pooled.written_texts import WrittenItem
from lorakit.serving.requests import Finished, GenerationRequest, NewText, Sampling
from lorakit.serving.service import Service, ServiceSettings
from lorakit.serving.sources import find_source
from lorakit.serving.text_side import TextSide

_DEFAULT_NEW_TOKENS = 256
_CHAT = [TaskType.CAUSAL_LM]


class InProcessModels:
    """A run's adapter on its base, or a base alone, run by an engine in this process."""

    def __init__(
        self, place: str | Path, *, unquantized: bool = False, trust_remote_code: bool = False
    ):
        """Load a base and its adapter, and start the engine.

        Args:
            place: A run, an adapter directory, the hub id of an adapter, or the directory of a
                base.
            unquantized: Whether to load the base as it is saved, even if it was quantized in
                training.
            trust_remote_code: Whether code that comes with the base or the tokenizer may run.

        Raises:
            ConfigError: The adapter is for another task.
            LorakitError: The adapter or its base cannot be used.
        """
        from_hub = is_hub_id(place)
        if not from_hub and not Path(place).is_dir():
            raise MissingFileError(
                f"Nothing to talk to at {place}: expected a run, an adapter directory or the "
                "address of a server such as http://localhost:8000. Check the path."
            )
        source = find_source(
            () if from_hub else (place,),
            adapters={str(place).rpartition("/")[2]: place} if from_hub else None,
            unquantized=unquantized,
            trust_remote_code=trust_remote_code,
        )
        named = list(source.places.named)
        if source.base_name in named:
            source = replace(source, base_name=f"{source.base_name} (base)")
        tasks = [str(kind.task) for kind in source.kinds if kind.task not in _CHAT]
        if tasks:
            raise ConfigError(
                f"No chat with {place}: got a model for {tasks[0]}, expected one for CAUSAL_LM. "
                f"Try `lorakit generate {place}`."
            )
        settings = ServiceSettings(engine=EngineSettings(max_batch_rows=2))
        self._service = Service(source, settings)
        self._service.start()
        try:
            self._service.require_named()
        except BaseException:
            self._service.stop(finish_running=False)
            raise

    async def list_models(self) -> Sequence[Listed]:
        """Return the base and its adapter."""
        adapters = [
            Listed(known.name, False, str(kind.task), known.problem)
            for known, kind in self._service.adapters()
        ]
        return [Listed(self._service.base_name, True), *adapters]

    async def form(self, name: str) -> Form:
        """Return what a model takes."""
        return await form_in(self._service, name)

    def answer(
        self, name: str, messages: Sequence[Message], options: AnswerOptions, *, form_like: str
    ) -> AsyncIterator[str | End]:
        """Yield the pieces of an answer, and its end; see `TalkingModels.answer`."""
        return answer_from(self._service, name, messages, options, form_like=form_like)

    async def close(self) -> None:
        """End the engine."""
        self._service.stop(finish_running=False)


async def form_in(service: Service, name: str) -> Form:
    """Return what a model of a service takes.

    Raises:
        LorakitError: It cannot chat, or cannot be loaded.
    """
    found = await service.find(name, _CHAT, "chat")
    async with found.model.using(found.adapter) as (_, text):
        return form_of_text(text)


async def answer_from(
    service: Service,
    name: str,
    messages: Sequence[Message],
    options: AnswerOptions,
    *,
    form_like: str,
) -> AsyncIterator[str | End]:
    """Yield the pieces of the answer of a service's model, and its end.

    Takes the arguments of `TalkingModels.answer` and raises its errors.
    """
    found = await service.find(name, _CHAT, "chat")
    like = await service.find(form_like, _CHAT, "chat")
    model = found.model
    async with (
        model.using(like.adapter) as (_, text),
        model.using(found.adapter) as (lease, _),
    ):
        ids = await model.in_text_thread(_prompt_ids, text, messages)
        most = _new_tokens(len(ids), options.max_new_tokens, model.most_tokens)
        answers = model.answers(lease)
        answers.ask(
            GenerationRequest(
                prompt=tuple(ids),
                adapter=lease.carried_name,
                cache_key=lease.content_hash,
                sampling=_sampling(options, most, text),
                tokenizer=text.tokenizer,
            )
        )
    try:
        async for _, event in answers.events():
            if isinstance(event, NewText):
                yield event.text
            elif isinstance(event, Finished):
                yield End(event.reason)
    finally:
        answers.cancel()


def form_of_text(text: TextSide) -> Form:
    """Return what a model with this tokenizer and these settings takes."""
    untyped: Any = text.tokenizer
    return form_of(text.settings.format, has_template=bool(untyped.chat_template))


def _prompt_ids(text: TextSide, messages: Sequence[Message]) -> list[int]:
    form = form_of_text(text)
    if form == "conversation":
        return text.chat_ids(messages)
    question = last_question(messages)
    return text.prompt_ids(alpaca_prompt(question) if form == "instruction" else question)


def _sampling(options: AnswerOptions, most_tokens: int, text: TextSide) -> Sampling:
    return Sampling(
        max_tokens=most_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop_token_ids=text.stop_token_ids,
    )


def _new_tokens(prompt_tokens: int, wanted: int | None, limit: int | None) -> int:
    """Return how many new tokens an answer may have.

    Raises:
        DataError: Not one fits.
    """
    most = wanted or _DEFAULT_NEW_TOKENS
    if limit is None:
        return most
    if prompt_tokens >= limit:
        raise DataError(
            f"The conversation is too long: got {prompt_tokens} tokens, expected fewer than the "
            f"{limit} that this model can take. Begin a new one with /clear."
        )
    return min(most, limit - prompt_tokens)


async def stream_output(
    service: Service, name: str, text: str, options: AnswerOptions
) -> AsyncIterator[str | End]:
    """Yield what a sequence-to-sequence model of a service writes for a text, and the end.

    Raises:
        LorakitError: There is no answer.
    """
    found = await service.find(name, [TaskType.SEQ_2_SEQ_LM], "write")
    model = found.model
    async with model.using(found.adapter) as (lease, side):
        columns = await model.in_text_thread(side.source_columns, text)
        most = options.max_new_tokens or side.settings.max_target_length or _DEFAULT_NEW_TOKENS
        sampling = _sampling(options, most, side)
        item = WrittenItem(columns, lease.carried_name, sampling, side.settings.num_beams)
        try:
            (written,) = await model.forward([item], lease)
        finally:
            item.is_cancelled.set()
        yield decode(side.tokenizer, written.token_ids, skip_special_tokens=True)
    yield End(written.reason)
