"""Votes and corrections of answers, kept as examples that a recipe can train on.

A vote is one line of a JSONL file. Which answer is better is `{prompt, chosen, rejected, ...}`;
the right class of a text is `{text, label, ...}`; the right tags of words,
`{tokens, tags, ...}`. All lines of a file have the same layout, as a data set needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lorakit.errors import DataError, DiskError
from lorakit.files.atomic import write_text
from lorakit.files.disks import disk_error

FOLDER = "preferences"
"""Folder below the studio's directory that holds the files of votes."""

Vote = dict[str, Any]
Message = Mapping[str, str]
Subject = Literal["chat", "texts", "labels", "tags"]

_LOCK_WAIT_S = 10.0
_ANSWERS = ("chosen", "label", "tags")
"""What a vote says is right, in each layout."""

_QUESTIONS = ("prompt", "text", "text1", "text2", "tokens")
"""What a vote is about, besides the pair of answers."""


@dataclass(frozen=True)
class Added:
    """What `add_votes` has done.

    Attributes:
        file: The file.
        added: Votes that are new.
        replaced: Earlier votes that said the opposite, which the new ones replace.
        known: Votes that the file had already.
        total: Votes in the file now.
        is_of_answers: Whether they are about which answer is better, not about labels or tags.
    """

    file: Path
    added: int
    replaced: int
    known: int
    total: int
    is_of_answers: bool


def vote_file(root: Path, subject: Subject, adapter: str | None = None) -> Path:
    """Return the file for votes on a subject.

    Args:
        root: The studio's directory.
        subject: Answers in a chat, answers to texts, labels of texts, or tags of words.
        adapter: Path of the adapter below the root, whose labels or tags these are. Labels of
            different adapters are different classes, so each adapter has its own file.
    """
    folder = root / FOLDER
    return (folder if adapter is None else folder / adapter) / f"{subject}.jsonl"


def preference(
    prompt: str | Sequence[Message],
    chosen: str,
    rejected: str,
    *,
    chosen_from: str,
    rejected_from: str,
) -> Vote:
    """Return a vote for one of two answers to a prompt.

    Args:
        prompt: The text that the models saw, or the messages of a conversation.
        chosen: The better answer.
        rejected: The other answer.
        chosen_from: Model that wrote the better one, or "user" if it is a correction.
        rejected_from: Model that wrote the other one.

    Raises:
        DataError: The prompt is empty, or both answers are the same.
    """
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError("Cannot save the vote: got an empty prompt, expected a text. Write one.")
    if not chosen.strip():
        raise DataError(
            "Cannot save the vote: got an empty answer as the better one, expected a text. "
            "Choose another answer, or correct it."
        )
    if chosen == rejected:
        raise DataError(
            "Cannot save the vote: got the same answer as the better and the worse one, expected "
            "two that differ. Ask again with a temperature above 0, or correct the answer."
        )
    is_talk = not isinstance(prompt, str)
    return {
        "prompt": [dict(message) for message in prompt] if is_talk else prompt,
        "chosen": _answer(chosen, is_talk),
        "rejected": _answer(rejected, is_talk),
        "chosen_from": chosen_from,
        "rejected_from": rejected_from,
    }


def _answer(text: str, is_talk: bool) -> str | list[Message]:
    return [{"role": "assistant", "content": text}] if is_talk else text


def right_label(
    text: str | tuple[str, str],
    label: str | Sequence[str],
    predicted: str | Sequence[str],
    model: str,
) -> Vote:
    """Return a vote for the class of a text or of a pair of texts, or for all of its labels.

    Args:
        text: The text or the pair.
        label: The right class, or the right labels where a text may have several.
        predicted: What the model gave.
        model: Name of the model.
    """
    texts = {"text": text} if isinstance(text, str) else {"text1": text[0], "text2": text[1]}
    right, given = (one if isinstance(one, str) else list(one) for one in (label, predicted))
    return {**texts, "label": right, "predicted": given, "predicted_by": model}


def right_tags(
    tokens: Sequence[str], tags: Sequence[str], predicted: Sequence[str], model: str
) -> Vote:
    """Return a vote for the tags of words.

    Args:
        tokens: The words.
        tags: The right tag of each word.
        predicted: The tag that the model gave to each word.
        model: Name of the model.

    Raises:
        DataError: There is not one tag for each word.
    """
    if len(tokens) != len(tags):
        raise DataError(
            f"Cannot save the correction: got {len(tags)} tags for {len(tokens)} words, expected "
            "one for each word. Choose a tag for every word."
        )
    return {
        "tokens": list(tokens),
        "tags": list(tags),
        "predicted": list(predicted),
        "predicted_by": model,
    }


def add_votes(file: Path, votes: Sequence[Vote]) -> Added:
    """Add votes to a file; they are on the disk when this returns.

    A vote that the file has already is not added again. A vote that says the opposite of an earlier
    one replaces it. Other lines stay as they are. Several processes may add at the same time.

    Args:
        file: The file; it and its directory are created if they do not exist.
        votes: The votes.

    Raises:
        DataError: The file has a line of another layout, or one that is not a vote.
        DiskError: The file cannot be written.
    """
    lock = FileLock(file.with_name(f".{file.name}.lock"), thread_local=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=_LOCK_WAIT_S):
            return _add_to_file(file, votes)
    except Timeout:
        raise DataError(
            f"Cannot add to {file}: another process has been writing to it for "
            f"{_LOCK_WAIT_S:.0f} s, expected it to end. Vote again, or end that process."
        ) from None
    except DiskError:
        raise
    except OSError as error:
        raise disk_error(error, file) or DataError(
            f"Cannot add to {file}: {error.strerror}, expected a directory that can be written "
            "to. Check the path."
        ) from error


def _add_to_file(file: Path, votes: Sequence[Vote]) -> Added:
    lines = _lines(file)
    layout = _layout(lines[0][1]) if lines else None
    added = replaced = known = 0
    for vote in votes:
        if layout is not None and _layout(vote) != layout:
            raise DataError(
                f"Cannot add the vote to {file}: its first line has "
                f"{_describe_layout(layout)}, expected {_describe_layout(_layout(vote))} as in the "
                "vote. Move the file elsewhere."
            )
        layout = _layout(vote)
        earlier = [line for line in lines if _question(line[1]) == _question(vote)]
        if any(_right(each) == _right(vote) for _, each in earlier):
            known += 1
            continue
        lines = [line for line in lines if line not in earlier]
        lines.append((_text_of(vote), vote))
        replaced += len(earlier)
        added += 1
    if added:
        write_text(file, "".join(f"{text}\n" for text, _ in lines))
    return Added(file, added, replaced, known, len(lines), "chosen" in (layout or ()))


def _lines(file: Path) -> list[tuple[str, Vote]]:
    """Return each line as it stands, with the vote in it."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise DataError(
            f"Cannot read the votes in {file}: byte {error.start} is not UTF-8, expected a JSON "
            "object in each line. Move the file elsewhere."
        ) from None
    found: list[tuple[str, Vote]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            vote = json.loads(line)
        except (ValueError, RecursionError):
            vote = None
        if not isinstance(vote, dict) or not _is_vote(vote):
            raise DataError(
                f"Cannot read the votes in {file}: line {number} is not a vote, expected a JSON "
                'object such as {"prompt": "...", "chosen": "...", "rejected": "..."}. Mend the '
                "line, or move the file elsewhere."
            )
        found.append((line, vote))
    return found


def _is_vote(value: Vote) -> bool:
    return any(name in value for name in _QUESTIONS) and any(name in value for name in _ANSWERS)


def _text_of(vote: Vote) -> str:
    """Return the line of a vote; half of a surrogate pair, which no file can hold, becomes "?"."""
    return json.dumps(vote, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def _layout(vote: Vote) -> dict[str, str]:
    """Return the columns that decide the layout, with the kind of their values."""
    columns = (*_QUESTIONS, *_ANSWERS)
    return {name: _kind(vote[name]) for name in columns if name in vote}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a text"


def _describe_layout(layout: Mapping[str, str]) -> str:
    return ", ".join(f"{kind} as {name!r}" for name, kind in layout.items())


def _question(vote: Vote) -> str:
    """Return what a vote is about, the same for a vote and its opposite."""
    about = {name: vote[name] for name in _QUESTIONS if name in vote}
    pair = sorted(json.dumps(vote[name]) for name in ("chosen", "rejected") if name in vote)
    return json.dumps([about, pair], sort_keys=True)


def _right(vote: Vote) -> Any:
    return next((vote[name] for name in _ANSWERS if name in vote), None)
