"""The columns of examples, and the role that each could have in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from lorakit.config import TaskType
from lorakit.data import Place, Splits
from lorakit.data.conversations import check_conversations, is_conversation
from lorakit.data.labels import are_measurements
from lorakit.data.preferences import PREFERENCE, VOTES, preference_layout_of
from lorakit.data.targets import describe_labels, split_texts
from lorakit.data.text_formats import find_layout, text_columns
from lorakit.data.tokenize_examples import require_texts
from lorakit.errors import escaped, first_few
from lorakit.recipes.objective_section import ObjectiveType
from lorakit.recipes.recipe import DataConfig, Recipe
from lorakit.training.tasks import task_for

_TEXTS = (
    *("text", "sentence", "review", "comment", "content", "body", "document", "article"),
    *("message", "post", "tweet", "title", "question", "prompt", "input"),
)
_TEXT_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("text1", "text2"), ("text_a", "text_b"), ("question", "sentence"), ("query", "passage")),
)
_LABELS = (
    *("label", "labels", "class", "category", "sentiment", "intent", "topic", "target"),
    *("score", "rating"),
)
_WORDS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")
_TRANSLATED = (
    *(("source", "target"), ("document", "summary"), ("article", "highlights")),
    *(("article", "summary"), ("dialogue", "summary"), ("text", "summary"), ("src", "tgt")),
)
"""Columns that are clearly a source text and its target."""
_ANSWERED = (
    *(("prompt", "completion"), ("question", "answer"), ("instruction", "response")),
    *(("instruction", "output"), ("input", "output"), ("prompt", "response"), ("query", "answer")),
)
_LAYOUTS = ("messages", "prompt_completion", "alpaca", "text")
_SEPARATORS = ("|", ";", ",")
"""What may separate several labels in one text."""
_MOST_CLASSES = 200
_LONGEST_LABEL = 80


class Columns:
    """The columns of the examples, and the role that each could have."""

    def __init__(self, examples: Dataset, data: DataConfig, place: Place) -> None:
        """Look at examples.

        Args:
            examples: The examples.
            data: The `data:` section as far as it is known.
            place: Name of the examples, for errors.
        """
        self.examples, self.data, self.place = examples, data, place
        self.names: list[str] = examples.column_names
        self.values: dict[str, list[Any]] = {name: examples[name][:] for name in self.names}
        self.texts = [name for name in self.names if self._all(name, str)]
        self.lists = [name for name in self.names if self._all(name, list)]
        self.classes = {n: k for n in self.names if (k := self._class_count(n)) is not None}
        self.label_lists = [name for name in self.lists if self._holds_labels(name)]

    @property
    def description(self) -> str:
        """The names of the columns, for an error."""
        return f"the columns {first_few(map(escaped, self.names), 25)}"

    def infer_task(self) -> TaskType | None:
        """Return the task that the columns are clearly for, if there is one."""
        if self._has_layout(_LAYOUTS[:3]):
            return TaskType.CAUSAL_LM
        if self._words_and_tags() is not None:
            return TaskType.TOKEN_CLS
        if self._pair(_TRANSLATED) is not None:
            return TaskType.SEQ_2_SEQ_LM
        if self._pair(_ANSWERED) is not None:
            return TaskType.CAUSAL_LM
        label = self._label()
        if label is not None and self._text(label) is not None and self._is_sure(label):
            return TaskType.SEQ_CLS
        return TaskType.CAUSAL_LM if len(self.texts) == 1 else None

    def infer_objective(self, task: TaskType | None) -> ObjectiveType | None:
        """Return what preferences are trained with for a task, or None for right answers."""
        layout = preference_layout_of(self.names, self.data)
        is_named = any(self._has_columns_of(name) for name in _LAYOUTS)
        if layout == PREFERENCE and not is_named:
            by_task: dict[TaskType | None, ObjectiveType] = {
                None: "dpo",
                TaskType.CAUSAL_LM: "dpo",
                TaskType.SEQ_CLS: "reward",
            }
            return by_task.get(task)
        if layout == VOTES and task in (None, TaskType.CAUSAL_LM):
            votes = self.values[self.data.label]
            is_vote = isinstance(next((v for v in votes if v is not None), None), bool)
            return "kto" if is_vote else None
        return None

    def columns_for(self, task: TaskType) -> tuple[dict[str, str] | None, list[str]]:
        """Return the values of `data:` for a task, checked as in training, and notes.

        The values are None if no columns fit the task.
        """
        return {
            TaskType.SEQ_CLS: self._classification,
            TaskType.TOKEN_CLS: self._tagging,
            TaskType.SEQ_2_SEQ_LM: self._writing,
            TaskType.CAUSAL_LM: self._language,
        }[task]()

    # ---- the tasks ----

    def _classification(self) -> tuple[dict[str, str] | None, list[str]]:
        label = self._label()
        text = None if label is None else self._text(label)
        if label is None or text is None:
            return None, []
        pair = next((pair for pair in _TEXT_PAIRS if set(pair) <= set(self.texts)), None)
        used = {"text": text, "label": label}
        if pair is not None and label not in pair:
            used = {"text": pair[0], "text_pair": pair[1], "label": label}
        texts = {key: column for key, column in used.items() if key != "label"}
        require_texts(self.examples, {f"data.{k}": c for k, c in texts.items()}, self.place)
        separator = self._separator(label)
        examples, separated = self.examples, []
        if separator is not None:
            used["label_separator"] = separator
            examples = split_texts(examples, label, separator)
            separated = [
                f"A text in '{escaped(label)}' may be several labels, separated by '{separator}' "
                "(data.label_separator). Leave that out if each text is one class."
            ]
        notes = [*describe_labels(examples, label, self.place), *separated]
        candidates = (*self.classes, *self.label_lists)
        others = [escaped(n) for n in candidates if n not in used.values()]
        if others:
            notes.append(f"Other columns that could be labels (data.label): {first_few(others)}.")
        return used, notes

    def _tagging(self) -> tuple[dict[str, str] | None, list[str]]:
        found = self._words_and_tags()
        if found is None:
            return None, []
        used = {"tokens": found[0], "tags": found[1]}
        names = self._check_tags(used)
        return used, [f"The tags are {len(names)}: {first_few(map(escaped, names), 9)}."]

    def _check_tags(self, used: Mapping[str, str]) -> Sequence[str]:
        values = {**self.data.model_dump(), **used}
        recipe = Recipe(
            model="none", task=TaskType.TOKEN_CLS, data=DataConfig(**values), output="none"
        )
        splits = Splits(self.examples, None, train_place=self.place)
        return task_for(recipe.task).labels(splits, recipe) or ()

    def _writing(self) -> tuple[dict[str, str] | None, list[str]]:
        pair, notes = self._pair_of_texts((*_TRANSLATED, *_ANSWERED), "source", "target")
        if pair is None:
            return None, []
        used = {"source": pair[0], "target": pair[1]}
        require_texts(self.examples, {f"data.{k}": c for k, c in used.items()}, self.place)
        return used, notes

    def _language(self) -> tuple[dict[str, str] | None, list[str]]:
        if self._has_layout(_LAYOUTS):
            layout = find_layout(self.examples, self.data, self.place)
            used = {"format": layout.name}
            if layout.name == "messages":
                used["messages"] = layout.data.messages
            if layout.conversation:
                check_conversations(self.examples, layout.conversation, self.place)
            else:
                columns = text_columns(layout.name, layout.data)
                require_texts(self.examples, columns, self.place)
            if layout.name == "text":
                used["text"] = layout.data.text
            return used, []
        pair, notes = self._pair_of_texts(_ANSWERED, "prompt", "completion")
        if pair is not None:
            used = {"format": "prompt_completion", "prompt": pair[0], "completion": pair[1]}
            columns = {f"data.{key}": used[key] for key in ("prompt", "completion")}
        else:
            text = self._text(None)
            if text is None:
                return None, []
            used, columns = {"format": "text", "text": text}, {"data.text": text}
        require_texts(self.examples, columns, self.place)
        return used, notes

    # ---- the columns ----

    def _all(self, name: str, kind: type) -> bool:
        """Return whether all values of a column have one type; missing ones are reported later."""
        values = [value for value in self.values[name] if value is not None]
        return bool(values) and all(isinstance(value, kind) for value in values)

    def _class_count(self, name: str) -> int | None:
        """Return the number of classes of a column, or None if it does not hold classes."""
        feature = self.examples.features[name]
        if isinstance(feature, ClassLabel):
            return len(feature.names)
        values = [value for value in self.values[name] if value is not None]
        if not values or not all(isinstance(value, (str, int)) for value in values):
            return None
        distinct = {str(value) for value in values}
        is_repeated = 2 <= len(distinct) <= min(_MOST_CLASSES, max(2, len(values) // 2))
        return len(distinct) if is_repeated and max(map(len, distinct)) <= _LONGEST_LABEL else None

    def _label(self) -> str | None:
        """Return the column of labels: one with a known name, else with the fewest classes."""
        named = [name for wanted in _LABELS for name in self._find_names(wanted)]
        # Training reports what is wrong with a column "label" of numbers or without classes.
        named = [name for name in named if self._may_be_labels(name)]
        if named:
            return named[0]
        words = {n: k for n, k in self.classes.items() if n in self.texts and not self._numbers(n)}
        found = words or ({} if self.label_lists else self.classes)
        if found:
            return min(found, key=lambda name: found[name])
        if self.label_lists:
            return self.label_lists[0]
        measured = [name for name in self.names if self._measures(name)]
        return measured[0] if len(measured) == 1 else None

    def _holds_labels(self, name: str) -> bool:
        """Return whether a column of lists holds labels: short texts that come again."""
        items = [item for value in self.values[name] for item in value or ()]
        distinct = {str(item) for item in items}
        return (
            all(isinstance(item, str) for item in items)
            and 2 <= len(distinct) <= min(_MOST_CLASSES, max(2, len(items) // 2))
            and max(map(len, distinct)) <= _LONGEST_LABEL
        )

    def _measures(self, name: str) -> bool:
        """Return whether a column holds numbers with fractions."""
        values = [value for value in self.values[name] if value is not None]
        are_floats = bool(values) and all(isinstance(value, float) for value in values)
        has_fractions = are_floats and not all(value.is_integer() for value in values)
        return has_fractions or are_measurements(values)

    def _separator(self, label: str) -> str | None:
        """Return what separates several labels in one text, if the same parts come again."""
        texts = {value for value in self.values[label] if isinstance(value, str)}
        for separator in _SEPARATORS:
            split = [[part.strip() for part in text.split(separator)] for text in texts]
            parts = {part for one in split for part in one}
            if any(len(one) > 1 for one in split) and all(parts) and len(parts) < len(texts):
                return separator
        return None

    def _is_sure(self, label: str) -> bool:
        """Return whether a column is there to be predicted; numbers may also be other facts."""
        is_named = label.strip().lower() in _LABELS
        return is_named or len(self.names) == 2 or not self._measures(label)

    def _may_be_labels(self, name: str) -> bool:
        is_texts = name in self.texts and not self._numbers(name)
        return name in self.classes or not is_texts or name.strip().lower() in _LABELS[:2]

    def _find_names(self, wanted: str) -> list[str]:
        return [name for name in self.names if name.strip().lower() == wanted]

    def _numbers(self, name: str) -> bool:
        return all(_is_number(value) for value in self.values[name] if value)

    def _text(self, label: str | None) -> str | None:
        """Return the column of texts: one with a known name, else with the longest texts."""
        known = [name for name in self.texts if name != label and not self._numbers(name)]
        named = [name for wanted in _TEXTS for name in self._find_names(wanted) if name in known]
        return next(iter(named), None) or max(known, key=self._characters, default=None)

    def _characters(self, name: str) -> int:
        return sum(len(value or "") for value in self.values[name])

    def _words_and_tags(self) -> tuple[str, str] | None:
        """Return two columns of lists, words and tags, that have known names or equal lengths."""
        named = [(w, t) for w in _WORDS for t in _TAGS if {w, t} <= set(self.lists)]
        if named:
            return named[0]
        if self.texts and any(name.strip().lower() in _LABELS[:2] for name in self.lists):
            return None  # lists of labels of the texts
        first = {name: next((v for v in self.values[name] if v), []) for name in self.lists}
        words = [name for name, value in first.items() if value and isinstance(value[0], str)]
        pairs = [
            (one, other)
            for one in words
            for other in self.lists
            if other != one
            and isinstance(next(iter(first[other]), None), (str, int))
            and self._lengths(one) == self._lengths(other)
        ]
        # There are more distinct words than tags.
        return max(
            pairs, key=lambda pair: self._distinct(pair[0]) - self._distinct(pair[1]), default=None
        )

    def _lengths(self, name: str) -> list[int]:
        return [len(value or ()) for value in self.values[name]]

    def _distinct(self, name: str) -> int:
        return len({str(item) for value in self.values[name] for item in value or ()})

    def _pair(self, known: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        return next((pair for pair in known if set(pair) <= set(self.texts)), None)

    def _pair_of_texts(
        self, known: Sequence[tuple[str, str]], first: str, second: str
    ) -> tuple[tuple[str, str] | None, list[str]]:
        """Return two columns with known names, or the only two columns of texts and a note."""
        pair = self._pair(known)
        if pair is not None or len(self.texts) != 2:
            return pair, []
        pair = (self.texts[0], self.texts[1])
        return pair, [
            f"'{escaped(pair[0])}' is taken as the {first} and '{escaped(pair[1])}' as the "
            f"{second}; exchange them if that is wrong."
        ]

    def _has_columns_of(self, layout: str) -> bool:
        return all(column in self.names for column in text_columns(layout, self.data).values())

    def _has_layout(self, layouts: Sequence[str]) -> bool:
        """Return whether the columns have the names of a layout, or one holds messages."""
        if any(self._has_columns_of(layout) for layout in layouts):
            return True
        chats = [
            n
            for n in self.names
            if is_conversation(next((v for v in self.values[n] if v is not None), None))
        ]
        return len(chats) == 1


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
