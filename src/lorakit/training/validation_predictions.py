"""Write predictions.jsonl and confusion.png of a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.analysis.metrics import class_scores
from lorakit.analysis.plots.confusion import plot_confusion
from lorakit.files.atomic import replacing_file
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.evaluation_metrics import final_step, is_evaluated
from lorakit.training.predicted import Predicted
from lorakit.training.report import PredictionFacts
from lorakit.training.setup import Setup

if TYPE_CHECKING:
    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin


def keep_predictions(setup: Setup, trainer: AdapterTrainerMixin) -> None:
    """Let a trainer keep the predictions of its evaluations, if the task has any."""
    if trainer.compute_metrics is not None:
        trainer.read_predictions = setup.task.prediction_reader(setup.labels, setup.tokenizer)


def final_predictions(setup: Setup, trainer: AdapterTrainerMixin) -> Predicted | None:
    """Return the predictions of the final weights; all processes must call this.

    They are of the evaluation whose metrics are the run's. If that was before a resume, classes are
    predicted once more; texts, which take long to generate, are not.
    """
    if trainer.read_predictions is None or not is_evaluated(trainer):
        return None
    found = trainer.predicted_at(final_step(trainer))
    if found is None and setup.labels is not None:
        dataset: Any = trainer.eval_dataset
        trainer.predict(dataset)
        found = trainer.predicted_at(trainer.state.global_step)
    return found


def write_predictions(
    setup: Setup, predicted: Predicted | None, run: RunDirectory
) -> PredictionFacts | None:
    """Write predictions.jsonl and confusion.png.

    Files that an earlier adapter of the run has left are replaced, or deleted if there is nothing
    to write.
    """
    confusion = None if predicted is None else predicted.confusion
    if predicted is None or setup.splits.validation is None:
        run.predictions_file.unlink(missing_ok=True)
    else:
        examples = setup.splits.validation.select(predicted.numbers)
        columns = setup.task.prediction_columns(
            predicted, examples, setup.recipe, setup.tokenizer, setup.encoded
        )
        _write_rows(columns, run)
    if predicted is None or confusion is None:
        run.confusion_plot.unlink(missing_ok=True)
    else:
        plot_confusion(confusion, predicted.labels, run.confusion_plot, run.path.name)
    if predicted is None:
        return None
    classes = () if confusion is None else class_scores(confusion, predicted.labels)
    return PredictionFacts(len(predicted.numbers), predicted.total, classes)


def prediction_files(run: RunDirectory, facts: PredictionFacts | None) -> tuple[Path, ...]:
    """Return the files that `write_predictions` has written."""
    if facts is None:
        return ()
    return (run.predictions_file, *([run.confusion_plot] if facts.classes else []))


def _write_rows(columns: Mapping[str, Sequence[Any]], run: RunDirectory) -> None:
    """Write one line per example; a column holds a value for each."""
    with (
        replacing_file(run.predictions_file) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
