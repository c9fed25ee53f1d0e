"""Show how a run ended: its steps, its metrics, and whether it is better than the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.cli.views.console import duration_text, heading, number_text, pairs, say

if TYPE_CHECKING:
    from lorakit.training.run import TrainResult


def show_result(result: TrainResult) -> None:
    """Print how training ended, and which checkpoint was kept."""
    steps = f"{result.steps:,} step{'' if result.steps == 1 else 's'}"
    heading(f"Trained {steps} in {duration_text(result.wall_s)}")
    kept = kept_evaluation(result)
    if kept is not None and kept["step"] != result.steps:
        say(
            f"  kept: the adapter of epoch {kept['epoch']:.4g}, the best on the validation examples"
        )
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.analysis.metric_text import metric_text

    settings = InferenceSettings.load(result.adapter_path)
    metrics = {"mean training loss": result.train_loss}
    metrics |= {f"validation {metric_text(key, settings)}": v for key, v in result.metrics.items()}
    values = {name: number_text(value) for name, value in metrics.items()}
    if result.throughput is not None:
        values["tokens per second"] = f"{result.throughput.tokens_per_s:,.0f}, without padding"
        values["padding in the batches"] = f"{result.throughput.padding_share:.1%}"
    pairs(values)
    show_verdict(result)
    warn_if_chance(result)


def show_verdict(result: TrainResult) -> None:
    """Print whether the adapter is better than the base, if it was measured."""
    sentence = None if result.verdict is None else result.verdict.sentence
    if sentence is not None:
        say(f"  {sentence}", style="bold")


def warn_if_chance(result: TrainResult) -> None:
    """Print the warning of the report if the metrics are no better than chance."""
    from lorakit.analysis.guessing import reference_of, warning
    from lorakit.recipes.run_directory import RunDirectory

    warned = warning(reference_of(RunDirectory(result.run_dir)), result.metrics)
    if warned:
        say(f"  {warned}", style="bold")


def kept_evaluation(result: TrainResult) -> dict[str, Any] | None:
    """Return the row of metrics.jsonl with the metrics of the kept adapter."""
    from lorakit.recipes.run_directory import RunDirectory

    rows = RunDirectory(result.run_dir).metrics()
    evaluations = [row for row in rows if row["event"] == "evaluation"]
    return next((row for row in evaluations if result.metrics.items() <= row.items()), None)
