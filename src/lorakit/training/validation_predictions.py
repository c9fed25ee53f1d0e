"""Write predictions.jsonl and confusion.png of a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.analysis.plots.confusion import plot_confusion
from lorakit.distributed.processes import run_on_main
from lorakit.files.atomic import replacing_file
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.callbacks import EventHandler
from lorakit.training.evaluation_metrics import final_step, is_evaluated
from lorakit.training.predicted import Predicted
from lorakit.training.report import PredictionFacts
from lorakit.training.setup import Setup
from lorakit.training.tasks.base import seed_of
from lorakit.training.trainers.kept_predictions import KeptEvaluation
from lorakit.training.verdict.judge import Judgement, judge
from lorakit.training.verdict.shown_examples import (
    ShownExamples,
    examples_of_losses,
    examples_of_predictions,
    generate_answers,
)

if TYPE_CHECKING:
    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin


def keep_predictions(setup: Setup, trainer: AdapterTrainerMixin) -> None:
    """Let a trainer keep the predictions of its evaluations, if the task has any."""
    if trainer.compute_metrics is not None:
        trainer.read_predictions = setup.task.prediction_reader(setup)


def final_evaluation(setup: Setup, trainer: AdapterTrainerMixin) -> KeptEvaluation | None:
    """Return what the evaluation of the final weights found; all processes must call this.

    It is the evaluation whose metrics are the run's. If that was before a resume, the examples are
    evaluated once more, unless that would only generate texts for predictions.jsonl, which takes
    long.
    """
    if not is_evaluated(trainer):
        return None
    found = trainer.evaluation_at(final_step(trainer))
    is_needed = setup.labels is not None or setup.recipe.evaluation.compare_with_base
    if found is None and is_needed:
        with trainer.evaluating_apart():
            trainer.evaluate(metric_key_prefix="test")
            found = trainer.evaluation_at(trainer.state.global_step)
    return found


def write_predictions(
    setup: Setup, predicted: Predicted | None, run: RunDirectory
) -> PredictionFacts | None:
    """Write predictions.jsonl and confusion.png.

    Files that an earlier adapter of the run has left are replaced, or deleted if there is nothing
    to write.
    """
    confusion = None if predicted is None else predicted.confusion
    shown = ShownExamples()
    if predicted is None or setup.splits.validation is None:
        run.predictions_file.unlink(missing_ok=True)
    else:
        columns = prediction_columns(setup, predicted)
        write_rows(columns, run.predictions_file)
        place = setup.splits.with_places(setup.recipe.data)[-1][2]
        shown = examples_of_predictions(predicted, columns, place, seed_of(setup.recipe))
    if predicted is None or confusion is None:
        run.confusion_plot.unlink(missing_ok=True)
    else:
        plot_confusion(confusion, predicted.labels, run.confusion_plot, run.path.name)
    if predicted is None:
        return None
    return PredictionFacts(
        *(len(predicted.numbers), predicted.total, predicted.classes, shown),
        has_several_labels=confusion is None,
    )


def prediction_files(run: RunDirectory, facts: PredictionFacts | None) -> tuple[Path, ...]:
    """Return the files that `write_predictions` has written."""
    if facts is None:
        return ()
    return (run.predictions_file, *([run.confusion_plot] if facts.has_confusion else []))


def prediction_columns(setup: Setup, predicted: Predicted) -> dict[str, list[Any]]:
    """Return the columns of predictions.jsonl: inputs, expected answers and predictions."""
    validation: Any = setup.splits.validation
    examples = validation.select(predicted.numbers)
    return setup.task.prediction_columns(predicted, examples, setup, setup.encoded)


def write_rows(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write one line per example to a JSON Lines file; a column holds a value for each."""
    with (
        replacing_file(path) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Findings:
    """What is found about the final weights."""

    evaluation: KeptEvaluation | None
    """None for a run without evaluation."""
    judgement: Judgement | None
    """None if the recipe does not compare with the base."""

    @property
    def predicted(self) -> Predicted | None:
        """The predictions, beside those of the base if it was asked for any."""
        if self.evaluation is None:
            return None
        return beside_base(self.evaluation.predicted, self.judgement)


def find_at_end(setup: Setup, trainer: AdapterTrainerMixin, emit: EventHandler) -> Findings:
    """Return what the final weights predict, and compare them with the base if the recipe says so.

    All processes must call this.
    """
    found = final_evaluation(setup, trainer)
    compares = setup.recipe.evaluation.compare_with_base
    return Findings(found, judge(setup, trainer, found, emit) if compares else None)


def beside_base(predicted: Predicted | None, judgement: Judgement | None) -> Predicted | None:
    """Return predictions beside those of the base, if there are any."""
    if predicted is None or judgement is None or judgement.base is None:
        return predicted
    return predicted.beside_base(judgement.base)


def answers_without_predictions(
    setup: Setup, trainer: AdapterTrainerMixin, findings: Findings
) -> ShownExamples:
    """Return examples of a language model whose evaluation generates nothing.

    All processes must call this; the main one generates.
    """
    found = findings.evaluation
    if found is None or found.predicted is not None or setup.encoded.validation is None:
        return ShownExamples()
    unlikely = examples_of_losses(setup, found.example_scores)
    compares = findings.judgement is not None
    answers = run_on_main(lambda: generate_answers(setup, trainer)) if compares else ()
    return ShownExamples(unlikely, answers, "unlikely answers")
