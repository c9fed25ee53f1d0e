"""Examples of preferences: find their columns, and turn each into a prompt with two answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.data import Place, describe_examples, is_missing, require_columns
from lorakit.data.chunks import Batch, over_chunks
from lorakit.data.conversations import (
    TEMPLATE_VARIABLES,
    TOOLS,
    MalformedConversationError,
    drop_filled_nulls,
    is_conversation,
    parse_messages,
)
from lorakit.data.reading.columns import first_value
from lorakit.errors import DataError, first_few

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.recipes.objective_section import ObjectiveConfig
    from lorakit.recipes.recipe import DataConfig

PARTS = "parts"
"""Column of an encoded example: the number of tokens of its prompt, first and second answer."""
SEGMENTS = "segments"
"""Key of a batch: which part of its example each token belongs to."""
VOTES_KEY = "votes"
"""Column and key of the votes, 1 or 0."""
REFERENCE_KEY = "reference"
"""Column and key of the reference's log-probabilities of both answers."""
PROMPT, FIRST, SECOND, PADDING = 0, 1, 2, -1
"""Values of segments."""

PREFERENCE, VOTES = "preference", "votes"
"""The layouts: a chosen and a rejected answer, and one answer with a vote."""

_LINES = {PREFERENCE: "objective: {type: dpo}", VOTES: "objective: {type: kto}"}
"""The line of a recipe that trains on each layout."""

_SPACES = re.compile(" {2,}")

_MOST_TRIES = 8
"""Most earlier examples to look at for an answer to another prompt."""


@dataclass(frozen=True)
class PreferenceLayout:
    """Where the prompts and answers of preferences are."""

    name: str
    """preference or votes."""
    prompt: str | None
    """Column of prompts; None takes what both answers begin with."""
    answers: tuple[str, ...]
    """Columns of the chosen and the rejected answers, or of the only answers."""
    vote: str | None
    """Column of votes."""
    is_conversation: bool
    """Whether prompts or answers are messages."""
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, without those of a chat template."""
        names = (self.prompt, *self.answers, self.vote)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class TwoAnswers:
    """One example: a prompt and two answers, all texts or all messages.

    The second answer of a vote is one to another prompt.
    """

    prompt: Any
    first: Any
    second: Any
    options: Mapping[str, Any]
    """Columns that a chat template reads besides the messages."""
    vote: int | None = None
    """1 for a good first answer and 0 for a bad one; None for pairs."""


def preference_layout_of(columns: Sequence[str], data: DataConfig) -> str | None:
    """Return which layout of preferences the names of columns are those of, if any."""
    if data.chosen in columns and data.rejected in columns:
        return PREFERENCE
    if all(name in columns for name in (data.prompt, data.completion, data.label)):
        return VOTES
    return None


def find_preferences(
    examples: Dataset, data: DataConfig, objective: ObjectiveConfig, where: Place | str
) -> PreferenceLayout:
    """Return where the prompts and answers of an objective are.

    Raises:
        DataError: The examples are not of the objective's layout; says what they are, and which
            line of the recipe to change.
    """
    wanted = VOTES if objective.reads_votes else PREFERENCE
    columns = examples.column_names
    found = preference_layout_of(columns, data) if data.format == "auto" else data.format
    if found != wanted:
        raise DataError(_other_layout(found, wanted, columns, data, objective, where))
    if wanted == VOTES:
        named = {"data.prompt": data.prompt, "data.completion": data.completion}
        require_columns(examples, {**named, "data.label": data.label}, where)
        prompt, answers, vote = data.prompt, (data.completion,), data.label
    else:
        answers, vote = (data.chosen, data.rejected), None
        require_columns(examples, {"data.chosen": answers[0], "data.rejected": answers[1]}, where)
        prompt = data.prompt if data.prompt in columns else None
    notes = []
    if data.format == "auto":
        notes.append(f"The examples are read as '{wanted}', from their columns (data.format).")
    if prompt is None:
        notes.append("What the two answers of an example begin with alike is its prompt.")
    read = [name for name in (prompt, *answers) if name is not None]
    talks = any(is_conversation(first_value(examples, name)) for name in read)
    return PreferenceLayout(wanted, prompt, answers, vote, talks, tuple(notes))


def supervised_problem(name: str, where: Place | str, what: str) -> str:
    """Return why preferences cannot be trained on as right answers, and which line to add.

    Args:
        name: Their layout.
        where: Name of the examples.
        what: What was found.
    """
    column = "chosen" if name == PREFERENCE else "completion"
    return (
        f"Preference data in {where}: got {what}, expected examples of the wanted answers only. "
        f"Add the line `{_LINES[name]}` to the recipe to train on the preferences. To train on the "
        f"good answers alone, keep those examples and set data.format=prompt_completion and "
        f"data.completion={column}."
    )


def _other_layout(
    found: str | None,
    wanted: str,
    columns: Sequence[str],
    data: DataConfig,
    objective: ObjectiveConfig,
    where: Place | str,
) -> str:
    needed = {
        PREFERENCE: f"'{data.chosen}' and '{data.rejected}', with or without '{data.prompt}'",
        VOTES: f"'{data.prompt}', '{data.completion}' and '{data.label}'",
    }[wanted]
    head = (
        f"No preferences for objective.type={objective.type} in {where}: got the columns "
        f"{first_few(columns, 25)}, expected {needed}."
    )
    if found in _LINES:
        kind = {PREFERENCE: "pairs of a chosen and a rejected answer", VOTES: "answers with votes"}
        return f"{head} They are {kind[found]}: change the line to `{_LINES[found]}`."
    if found is not None:
        return f"{head} data.format={found} is not a layout of preferences: leave it out."
    return (
        f"{head} If they are examples of right answers, leave `objective` out; else name your "
        "columns under `data:`."
    )


def check_preferences(
    examples: Dataset, layout: PreferenceLayout, where: Place | str, *, is_part: bool = False
) -> None:
    """Check that every example has a prompt and answers to compare.

    Args:
        examples: The examples.
        layout: Where their prompts and answers are.
        where: Their name, for errors.
        is_part: Whether more examples follow, so that these may have votes of one kind.

    Raises:
        DataError: Lists the examples of each problem.
    """
    features = dict(examples.features)
    wrong: dict[str, list[int]] = {}
    votes = set[bool]()

    def problems_of(
        batch: Batch, numbers: Sequence[int]
    ) -> tuple[list[tuple[str, int]], set[bool]]:
        found: list[tuple[str, int]] = []
        seen = set[bool]()
        for number, example in zip(numbers, _rows(batch, features), strict=True):
            try:
                problem = _problem(example, layout)
                seen |= set() if layout.vote is None else {_vote(example[layout.vote], layout.vote)}
            except MalformedConversationError as malformed:
                problem = str(malformed)
            if problem is not None:
                found.append((problem, number))
        return found, seen

    for found, seen in over_chunks(_read(examples, layout), problems_of, "Checking"):
        votes |= seen
        for problem, number in found:
            wrong.setdefault(problem, []).append(number)
    if wrong:
        problems = "; ".join(f"{describe_examples(at, where)}: {why}" for why, at in wrong.items())
        raise DataError(
            f"Preferences are unusable in {where}: {problems}; expected a prompt and "
            f"{'an answer with a vote' if layout.vote else 'two different answers'} in each "
            "example. Repair or remove these examples, or name other columns."
        )
    if len(votes) == 1 and not is_part:
        kind = "good" if votes.pop() else "bad"
        raise DataError(
            f"Nothing to compare in {where}: all votes in '{layout.vote}' (data.label) are {kind}, "
            "expected good and bad ones. Add the others, or train on the good answers without "
            "`objective`."
        )


def _problem(example: Mapping[str, Any], layout: PreferenceLayout) -> str | None:
    """Return why an example cannot be used, if so."""
    prompt, answers = _prompt_and_answers(example, layout)
    if not prompt:
        return "no beginning in common" if layout.prompt is None else "an empty prompt"
    if len(answers) == 2 and answers[0] == answers[1]:
        return "the chosen answer is the rejected one"
    if len(answers) == 2 and _without_spacing(answers[0]) == _without_spacing(answers[1]):
        return "the chosen answer differs from the rejected one in spaces alone"
    return None


def _without_spacing(value: Any) -> Any:
    """Return a value whose texts have no white space at either end, and single spaces."""
    if isinstance(value, str):
        return _SPACES.sub(" ", value.strip())
    if isinstance(value, Mapping):
        return {key: _without_spacing(item) for key, item in value.items()}
    return [_without_spacing(item) for item in value] if isinstance(value, list) else value


def preference_reader(
    examples: Dataset, layout: PreferenceLayout
) -> tuple[Dataset, Callable[[Batch, Sequence[int]], list[TwoAnswers]]]:
    """Return the columns that are read, and the function that reads chunks of these.

    Call `check_preferences` first. The second answer of a vote is that of an earlier example, to
    another prompt if one is near; before the first example comes the last.
    """
    selected = _read(examples, layout)
    features = dict(selected.features)

    def read_batch(batch: Batch) -> list[tuple[dict[str, Any], Any, tuple[Any, ...]]]:
        return [
            (example, *_prompt_and_answers(example, layout)) for example in _rows(batch, features)
        ]

    def read(batch: Batch, numbers: Sequence[int]) -> list[TwoAnswers]:
        rows = read_batch(batch)
        if layout.vote is None:
            return [
                TwoAnswers(prompt, chosen, rejected, _options(example))
                for example, prompt, (chosen, rejected) in rows
            ]
        back = min(len(selected), _MOST_TRIES)
        before: Any = selected.select(
            [(numbers[0] - step) % len(selected) for step in range(back, 0, -1)]
        )
        every = [*read_batch(before[:]), *rows]
        made = []
        for at, (example, prompt, (answer,)) in enumerate(rows, start=back):
            earlier = every[at - back : at][::-1]
            others = (answers[0] for _, question, answers in earlier if question != prompt)
            second = next(others, earlier[0][2][0])
            vote = int(_vote(example[layout.vote], layout.vote))
            made.append(TwoAnswers(prompt, answer, second, _options(example), vote))
        return made

    return selected, read


def _read(examples: Dataset, layout: PreferenceLayout) -> Dataset:
    """Return the columns that are read."""
    names = (*layout.columns, TOOLS, TEMPLATE_VARIABLES)
    return examples.select_columns([n for n in names if n in examples.column_names])


def _rows(batch: Batch, features: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the examples of a chunk as they were written."""
    given = drop_filled_nulls(batch, features)
    for values in zip(*given.values(), strict=True):
        yield dict(zip(given, values, strict=True))


def _options(example: Mapping[str, Any]) -> dict[str, Any]:
    return {key: example[key] for key in (TOOLS, TEMPLATE_VARIABLES) if key in example}


def _prompt_and_answers(
    example: Mapping[str, Any], layout: PreferenceLayout
) -> tuple[Any, tuple[Any, ...]]:
    """Return the prompt and the answers of an example, all texts or all messages."""
    read = _messages if layout.is_conversation else _text
    answers = tuple(read(example[name], name, "assistant") for name in layout.answers)
    if layout.prompt is not None:
        value = example[layout.prompt]
        if is_missing(value) or value == []:
            return "", answers
        prompt = read(value, layout.prompt, "user")
        if layout.is_conversation and all(_is_whole(answer, prompt) for answer in answers):
            said, answers = _split_beginning(answers)
            prompt = [*(message for message in prompt if message not in said), *said]
        return prompt, answers
    return _split_beginning(answers)


def _is_whole(answer: Any, prompt: Any) -> bool:
    """Return whether an answer is a whole conversation, which has the prompt's last message too."""
    return answer[0]["role"] != "assistant" and prompt[-1] in answer[:-1]


def _split_beginning(answers: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return what answers begin with alike, or all but the last message of one, and the rest."""
    length = _common_length(*answers) if len(answers) == 2 else len(answers[0]) - 1
    return answers[0][:length], tuple(answer[length:] for answer in answers)


def _common_length(first: Any, second: Any) -> int:
    """Return how much of both answers is the prompt; a space between belongs to the answers."""
    pairs = enumerate(zip(first, second, strict=False))
    shortest = min(len(first), len(second))
    length = next((number for number, (one, other) in pairs if one != other), shortest)
    if isinstance(first, str) and first != second and first[:length].endswith(" "):
        length -= 1
    return length


def _text(value: Any, column: str, role: str) -> str:
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise MalformedConversationError(f"{kind} in '{column}' where a text is expected")
    if not value.strip():
        raise MalformedConversationError(f"an empty text in '{column}'")
    return value


def _messages(value: Any, column: str, role: str) -> list[dict[str, Any]]:
    """Return messages; a text is a message by `role`."""
    if isinstance(value, str) and not is_conversation(value):
        return [{"role": role, "content": _text(value, column, role)}]
    try:
        return parse_messages(value)
    except MalformedConversationError as problem:
        raise MalformedConversationError(f"{problem} in '{column}'") from None


def _vote(value: Any, column: str) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    known = words.get(value.strip().lower()) if isinstance(value, str) else value
    if known not in (0, 1) or isinstance(known, float):
        raise MalformedConversationError(f"{value!r} in '{column}' is not true or false")
    return bool(known)
