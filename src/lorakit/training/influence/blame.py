"""Which training examples made an adapter give an answer, or make its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.analysis.data_influence import data_influence
from lorakit.config import SINGLE_LABEL, LoraConfig
from lorakit.data import Place
from lorakit.errors import ConfigError, DataError, MissingFileError
from lorakit.files.atomic import scratch_directory
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory, find_adapter
from lorakit.training.arguments import without_schedule
from lorakit.training.callbacks import ignore_event
from lorakit.training.example_digests import example_digests, note_changed_examples
from lorakit.training.influence.example_gradients import (
    ExampleGradients,
    ExampleLosses,
    mean_gradients,
)
from lorakit.training.influence.question import encode_answer, mistakes
from lorakit.training.setup import Setup, prepare


@dataclass(frozen=True)
class Blamed:
    """A training example and its influence."""

    index: int
    """Index among the run's training examples, from 0."""
    share: float
    """Its influence over the sum of the sizes of all influences. Above 0 it made the answer
    likelier, or the mistakes worse."""
    number: int
    """Number of the example in its source, from 1."""
    line: int | None
    """Line in the file, from 1; None for files without lines."""
    values: dict[str, Any]
    """Its columns."""
    file: str | None = None
    """The file, if the examples come from several."""


@dataclass(frozen=True)
class Blame:
    """The training examples by influence, those that made it likeliest or worst first."""

    rows: tuple[Blamed, ...]
    source: str
    """The data that the examples are of, as in the recipe."""
    about: str
    """What was asked, in a sentence."""
    notes: tuple[str, ...]
    setup: Setup
    """The run's data, base and adapter."""
    is_about_mistakes: bool = False
    """Whether the mistakes were asked about, and not an answer."""

    def heading(self, top: int) -> str:
        """Return what a list of the first `top` examples shows."""
        what = "made the mistakes worst" if self.is_about_mistakes else "made the answer likeliest"
        return f"The {min(top, len(self.rows)):,} examples that {what}, of {len(self.rows):,}"

    def place(self, row: Blamed) -> str:
        """Return the file and line of an example, or its number if there are no lines.

        With the line after a colon, editors open it.
        """
        source = row.file or self.source
        return f"{source}, example {row.number:,}" if row.line is None else f"{source}:{row.line}"

    def note_on_signs(self, top: int) -> tuple[str, ...]:
        """Return a note if the first `top` examples include some with the opposite influence."""
        if all(row.share > 0 for row in self.rows[:top]):
            return ()
        number = sum(row.share > 0 for row in self.rows)
        better = ("the answer likelier", "less likely")
        what = ("the mistakes worse", "better") if self.is_about_mistakes else better
        return (
            f"{number:,} of {len(self.rows):,} examples made {what[0]}; those with an influence "
            f"below 0 made {'them' if self.is_about_mistakes else 'it'} {what[1]}.",
        )


def blame(
    path: str | Path,
    answer: str | None = None,
    *,
    prompt: str | None = None,
    label: str | None = None,
    check: Callable[[Setup], None] | None = None,
    on_share: Callable[[float], None] | None = None,
) -> Blame:
    """Rank the training examples of a run by their influence on an answer or on its mistakes.

    Args:
        path: A run directory, or a checkpoint of one.
        answer: An answer of the adapter; for SEQ_CLS the text whose label is in question. None
            asks about the mistakes on the validation examples.
        prompt: What the answer answers, where examples have prompts.
        label: Label of a text; None takes what the adapter predicts.
        check: Called with the run's data and base before the first gradient; may raise.
        on_share: Called with the share of the examples' gradients that are computed, from 0 to 1.

    Raises:
        MissingFileError: There is no run at `path`.
        ConfigError: The question does not fit the task, there are no validation examples, or the
            run learns preferences, several labels for a text, or scores.
        DataError: The training examples cannot be told apart.

    Source: Kwon et al. 2023, arXiv:2310.00902.
    """
    adapter, recipe = find_adapter(path)
    if recipe is None:
        raise MissingFileError(
            f"Cannot tell examples of {path}: there is no recipe.yaml beside it, so its data are "
            "unknown. Name a run directory."
        )
    if answer is None and (prompt is not None or label is not None):
        raise ConfigError(
            "The mistakes have neither one prompt nor one label: got a prompt or a label without "
            "an answer, expected an answer with it. Leave it out, or give the answer."
        )
    if answer is not None and not answer.strip():
        raise ConfigError(
            "There is no answer to look at: got an empty text, expected words. Give the answer."
        )
    if recipe.objective is not None:
        raise ConfigError(
            f"Examples of {path} cannot be ranked: got objective.type={recipe.objective.type}, "
            "expected a run that learns the answers of its examples. Ask about a run without "
            "objective."
        )
    require_all_read(recipe)
    setup = prepare(_of_adapter(recipe, adapter), ignore_event, measures_dtype=False)
    _require_one_label(setup)
    require_one_each(setup)
    if check is not None:
        check(setup)
    with scratch_directory("lorakit-blame-") as scratch:
        setup.arguments.output_dir = str(scratch)
        trainer: Any = setup.build_trainer()
        losses = ExampleLosses(trainer)
        if answer is None:
            asked, about = mistakes(setup, losses)
        else:
            asked, about = encode_answer(setup, answer, prompt, label)
        query = mean_gradients(losses, asked)
        gradients = ExampleGradients(losses, setup.encoded.train, on_share=on_share)
        influence = data_influence(gradients, query)
    scores = influence if answer is not None else -influence
    changed = note_changed_examples(
        RunDirectory(adapter.parent).environment_file, example_digests(setup.encoded)
    )
    note = "The data or the tokenizer have changed since the run; the rows are those of today."
    return Blame(
        rows=_rank_examples(scores, setup),
        source=recipe.data.train_name,
        about=about,
        notes=() if changed is None else (note,),
        setup=setup,
        is_about_mistakes=answer is None,
    )


def _of_adapter(recipe: Recipe, adapter: Path) -> Recipe:
    """Return a recipe that starts from the trained adapter, for steps that change nothing."""
    training = without_schedule(recipe.training)
    training |= {key: False for key in ("packing", "eval_packing") if training.get(key)}
    changes = {"start_from": str(adapter), "lora": LoraConfig(), "training": training}
    return recipe.model_copy(update=changes)


def _require_one_label(setup: Setup) -> None:
    """Refuse texts with several labels or with a score, whose mistakes are not defined here.

    Raises:
        ConfigError: Names the kind of labels.
    """
    kind = getattr(setup.task, "problem_type", None)
    if kind not in (None, SINGLE_LABEL):
        raise ConfigError(
            f"Examples of {setup.recipe.data.train_name} cannot be ranked: got labels of the kind "
            f"{kind}, expected one label for each text. Ask about a run of one label each."
        )


def require_all_read(recipe: Recipe) -> None:
    """Refuse a run whose training examples are streamed.

    Raises:
        ConfigError: They are.
    """
    if recipe.data.streaming:
        raise ConfigError(
            "Examples that are read when they are needed cannot be ranked: got "
            "data.streaming=true, expected false. Ask about a run that reads all its examples."
        )


def require_one_each(setup: Setup) -> None:
    """Refuse examples of which some were left out when they were encoded.

    Raises:
        DataError: Says how many.
    """
    encoded, read = len(setup.encoded.train), len(setup.splits.train)
    if encoded != read:
        raise DataError(
            f"The training examples cannot be told apart: got {encoded:,} encoded ones of "
            f"{read:,}, expected one for each. Remove the examples of which no token counts, or "
            "raise data.max_length."
        )


def _rank_examples(scores: torch.Tensor, setup: Setup) -> tuple[Blamed, ...]:
    place = setup.splits.training_place(setup.recipe.data)
    whole = float(scores.abs().sum()) or 1.0
    examples = setup.splits.train
    rows = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        share = float(scores[index]) / whole
        number, line, file = _position(place, index)
        rows.append(Blamed(index, share, number, line, dict(examples[index]), file))
    return tuple(rows)


def _position(place: Place, index: int) -> tuple[int, int | None, str | None]:
    """Return the number of an example, its line and its file."""
    number = index if place.numbers is None else int(place.numbers[index])
    line = 0 if place.lines is None else int(place.lines[index])
    file = None if place.file_of is None else place.files[place.file_of[index]]
    return number + 1, line or None, file
