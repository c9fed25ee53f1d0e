"""What a playground shows: the models in memory, the question, and the answers as they come.

It belongs to the process, not to a page, so that an answer goes on while nobody looks. Importing it
imports no torch; that happens in a thread when the first base is loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError
from lorakit.runs.base_memory import DeviceRoom, device_room, room_without_torch
from lorakit.runs.mixtures import labelling_adapter
from lorakit.runs.votes import (
    Added,
    Subject,
    Vote,
    add_votes,
    preference,
    right_label,
    right_tags,
    vote_file,
)
from lorakit.runs.warm_process import Computation
from lorakit.serving.clients.candidates import Candidate, Question, Wanted, Words
from lorakit.serving.clients.talking import AnswerOptions, End
from lorakit.serving.pooled.labels import TextLabel

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from lorakit.serving.clients.side_by_side import SideBySide

BY_USER = "user"
"""Who wrote a corrected answer."""


@dataclass
class Loading:
    """A base that is being loaded.

    Attributes:
        stage: What is done now.
        started_s: When it began, on the monotonic clock.
        is_cancelled: Whether it was cancelled; it ends at its next stage.
    """

    stage: str = "Starting"
    started_s: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started_s

    def cancel(self) -> None:
        """Give it up."""
        self.is_cancelled = True

    def note(self, stage: str) -> None:
        """Say what is done now."""
        self.stage = stage


@dataclass
class Answer:
    """What one candidate says.

    Attributes:
        candidate: Who.
        question: To what.
        text: What it has written so far.
        label: What it says of a text.
        words: What it says of words.
        end: Why it has ended; None while it goes on.
        error: Why there is no answer.
    """

    candidate: Candidate
    question: Question
    text: str = ""
    label: TextLabel | None = None
    words: Words | None = None
    end: str | None = None
    error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.end is not None or self.error is not None

    @property
    def is_written(self) -> bool:
        """Whether it is a finished text."""
        return self.end is not None and self.label is None and self.words is None


class Playground:
    """Models to try, one question at a time. All methods belong to one event loop.

    Attributes:
        root: Directory below which all adapters lie.
        loading: What is being loaded now.
        error: Why the last load failed.
        candidates: Who can be asked.
        wanted: What is in memory, as it was asked for.
        question: The last question.
        options: How answers are written.
        answers: What the candidates said to it.
    """

    def __init__(self, root: Path):
        """Begin with nothing in memory."""
        self.root = root
        self.loading: Loading | None = None
        self.error: Exception | None = None
        self.candidates: list[Candidate] = []
        self.wanted: Wanted | None = None
        self.question = Question("")
        self.options = AnswerOptions(max_new_tokens=128)
        self.answers: list[Answer] = []
        self._models: SideBySide | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: list[asyncio.Task[None]] = []

    # ---- what is in memory ----

    @property
    def base(self) -> str | None:
        """Path or hub id of the base in memory."""
        return None if self._models is None else self._models.base

    @property
    def address(self) -> ASGIApp | None:
        """What answers calls of OpenAI's protocol with the models in memory."""
        return None if self._models is None else self._models.address

    async def room(self) -> DeviceRoom:
        """Return the memory that is free for another base, on the device that it is loaded on."""
        if self._models is not None:
            return await asyncio.to_thread(self._models.room)
        room = room_without_torch()
        if room is None:  # a process that ends gives the device's context back
            room = await asyncio.to_thread(Computation(self.root, device_room).result)
        return room

    def load(self, wanted: Wanted) -> None:
        """Begin to load; `loading` says how far it is, `error` or `candidates` how it ended.

        Raises:
            ConfigError: Another load goes on.
        """
        if self.loading is not None:
            raise ConfigError(
                "Cannot load now: another base is being loaded, expected one at a time. Wait for "
                "it, or cancel it."
            )
        self.stop()
        self.loading, self.error = Loading(), None
        self._run(self._load(wanted, self.loading))

    async def _load(self, wanted: Wanted, loading: Loading) -> None:
        self.candidates, self.answers, self.wanted = [], [], None
        try:
            await asyncio.to_thread(self._open, wanted, loading)
            if self._models is not None:
                self.candidates = await self._models.candidates()
                self.wanted = wanted
        except Exception as error:
            self.error = error
        finally:
            self.loading = None

    def _open(self, wanted: Wanted, loading: Loading) -> None:
        if self._models is None:
            loading.note("Importing the libraries of the models")
            from lorakit.serving.clients.side_by_side import SideBySide

            self._models = SideBySide(self.root)
        self._models.open(wanted, loading.note, lambda: loading.is_cancelled)

    async def unload(self) -> None:
        """Free the memory of the base."""
        self.stop()
        self.candidates, self.answers, self.wanted = [], [], None
        if self._models is not None:
            await asyncio.to_thread(self._models.close)

    def close(self) -> None:
        """End all threads, when the process ends."""
        self.stop()
        if self.loading is not None:
            self.loading.cancel()
        if self._models is not None:
            self._models.close()

    # ---- asking ----

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being written."""
        return any(not answer.is_over for answer in self.answers)

    def ask(self, question: Question, options: AnswerOptions) -> None:
        """Ask all candidates; what they say is in `answers`.

        Raises:
            ConfigError: Nothing is in memory, or the question is empty.
        """
        if not self.candidates:
            raise ConfigError(
                "Nobody to ask: got nothing in memory, expected a base or an adapter. Load one."
            )
        if not question.text.strip():
            raise ConfigError("Nothing to ask: got an empty text, expected one. Write it above.")
        self.stop()
        self.question, self.options = question, options
        self.answers = [Answer(candidate, question) for candidate in self.candidates]
        self._asking = [self._run(self._answer(answer)) for answer in self.answers]

    async def _answer(self, answer: Answer) -> None:
        models = self._models
        if models is None:
            return
        pieces = models.ask(answer.candidate, answer.question, self.options, self.candidates)
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    answer.text += piece
                elif isinstance(piece, End):
                    answer.end = piece.reason
                elif isinstance(piece, Words):
                    answer.words = piece
                else:
                    answer.label = piece
        except asyncio.CancelledError:
            answer.end = "stopped"
            raise
        except Exception as error:
            answer.error = error

    def stop(self) -> None:
        """Stop the answers that are being written; what they have stays."""
        for task in self._asking:
            task.cancel()
        for answer in self.answers:
            if not answer.is_over:
                answer.end = "stopped"

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop alone would not keep it alive
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- votes ----

    def prefer(self, better: Answer) -> tuple[Path, list[Vote]]:
        """Return the votes for one answer against the others, and the file they belong to.

        Raises:
            DataError: The others are the same, or there is none.
        """
        # A page may still show the answers to the question before.
        alike = [each for each in self.answers if each.question is better.question]
        others = [each for each in alike if each is not better and each.is_written]
        different = [each for each in others if each.text != better.text] or others[:1]
        if not different:
            raise ConfigError(
                "Nothing to compare with: got one finished answer, expected two. Wait for the "
                "others, or correct this one."
            )
        votes = [
            self._preference(better, better.text, other.text, other.candidate.name)
            for other in different
        ]
        return self._file(better.candidate), votes

    def correct(self, answer: Answer, text: str) -> tuple[Path, list[Vote]]:
        """Return the vote for a corrected text against an answer, and its file.

        Raises:
            DataError: The text is empty, or the same.
        """
        candidate = answer.candidate
        vote = self._preference(answer, text, answer.text, candidate.name, chosen_from=BY_USER)
        return self._file(candidate), [vote]

    def label(self, answer: Answer, label: str | Sequence[str]) -> tuple[Path, list[Vote]]:
        """Return the vote for the right label of the text, or its labels, and its file."""
        said, question, name = answer.label, answer.question, answer.candidate.name
        given = (question.text, question.second) if answer.candidate.takes_pairs else question.text
        several = None if said is None else said.chosen
        predicted = "" if said is None else said.label if several is None else several
        vote = right_label(given, label, predicted, name)
        return self._labels_file("labels", name), [vote]

    def tag(self, answer: Answer, tags: Sequence[str]) -> tuple[Path, list[Vote]]:
        """Return the vote for the right tags of the words, and its file."""
        words = () if answer.words is None else answer.words.words
        tokens, predicted = [each.word.text for each in words], [each.label for each in words]
        vote = right_tags(tokens, tags, predicted, answer.candidate.name)
        return self._labels_file("tags", answer.candidate.name), [vote]

    def place_of(self, candidate: Candidate) -> Path | None:
        """Return the directory of an adapter that is asked; None for the base and a mixture."""
        place = self._place(candidate.name)
        return place if place is None or labelling_adapter(place) is None else None

    def _place(self, name: str) -> Path | None:
        return None if self.wanted is None else self.wanted.adapters.get(name)

    async def save(self, found: tuple[Path, list[Vote]]) -> Added:
        """Write votes to their file; see `add_votes` for what may go wrong."""
        return await asyncio.to_thread(add_votes, *found)

    def _preference(
        self,
        answer: Answer,
        chosen: str,
        rejected: str,
        rejected_from: str,
        chosen_from: str | None = None,
    ) -> Vote:
        return preference(
            answer.question.prompt_for(answer.candidate),
            chosen,
            rejected,
            chosen_from=chosen_from or answer.candidate.name,
            rejected_from=rejected_from,
        )

    def _labels_file(self, subject: Subject, name: str) -> Path:
        """Return the file of an adapter; a mixture's labels are those of one of its adapters."""
        place = self._place(name)
        owner = None if place is None else labelling_adapter(place)
        return vote_file(self.root, subject, owner or name)

    def _file(self, candidate: Candidate) -> Path:
        subject: Subject = "chat" if candidate.form == "conversation" else "texts"
        return vote_file(self.root, subject)
