"""Write report.md: what was trained, how good it is, and how to use it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.guessing import Reference, warning
from lorakit.analysis.metric_text import metric_text
from lorakit.analysis.metrics import ClassScores
from lorakit.analysis.plots.losses import plot_losses
from lorakit.errors import escaped
from lorakit.files.atomic import write_text
from lorakit.injection import Injection, ParameterCount
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.markdown_text import code, fence_text, number, plain, table
from lorakit.training.throughput import Throughput
from lorakit.training.verdict.judge import Judgement
from lorakit.training.verdict.sections import example_sections, verdict_section
from lorakit.training.verdict.shown_examples import ShownExamples

_GB = 1e9


@dataclass(frozen=True)
class MemoryFacts:
    """The peak memory, planned and measured."""

    planned_bytes: int | None
    """None if nothing was planned."""
    peak_bytes: int | None
    """None if the system does not report it."""
    meaning: str
    """What is measured, in words."""


@dataclass(frozen=True)
class PredictionFacts:
    """What was written about the validation examples."""

    written: int
    """Number of lines of predictions.jsonl."""
    total: int
    """Number of validation examples."""
    classes: tuple[ClassScores, ...]
    """Scores of each class or label; empty without any, and with more than 30."""
    shown: ShownExamples = field(default_factory=ShownExamples)
    """Mistakes, and random examples."""
    has_several_labels: bool = False
    """Whether an example has any number of labels, so that there is no confusion of classes."""

    @property
    def has_confusion(self) -> bool:
        """Whether confusion.png is written."""
        return bool(self.classes) and not self.has_several_labels


@dataclass(frozen=True)
class RunFacts:
    """The contents of a report."""

    recipe: Recipe
    injection: Injection
    parameter_count: ParameterCount
    train_examples: int | None
    """None if they were read when they were needed."""
    validation_examples: int
    notes: tuple[str, ...]
    metrics: dict[str, float]
    train_loss: float
    steps: int
    planned_steps: int
    best_step: int | None
    """Optimizer step of the best checkpoint; None if the last step's weights are kept."""
    wall_s: float
    throughput: Throughput | None
    memory: MemoryFacts
    predictions: PredictionFacts | None
    """None if predictions.jsonl is not written."""
    answers: ShownExamples
    """Examples of a task without predictions."""
    judgement: Judgement | None
    """Whether the adapter is better than the base; None if it was not asked."""
    reference: Reference | None
    """The metrics of a model that learned nothing."""


def write_report(run: RunDirectory, facts: RunFacts) -> None:
    """Write loss.png and verdict.json, then report.md, which marks the run as finished."""
    if facts.judgement is not None:
        verdict = facts.judgement.verdict.facts()
        write_text(run.verdict_file, json.dumps(verdict, indent=2, ensure_ascii=False) + "\n")
    plot_losses(run, facts.best_step, facts.recipe.training.get("metric_for_best_model"))
    write_text(run.report_file, report_text(run, facts))


def report_text(run: RunDirectory, facts: RunFacts) -> str:
    """Return the report as Markdown."""
    recipe, judged = facts.recipe, facts.judgement
    sentence = None if judged is None else judged.verdict.sentence
    sections = [
        f"# {plain(run.path.name)}",
        f"**{plain(sentence)}**" if sentence else "",
        f"A LoRA adapter for {code(recipe.model)}, task {recipe.task}, trained on "
        f"{code(recipe.data.train_name)}{_start(recipe)}.",
        "## Result",
        _result_table(run, facts),
        _comparison_text(run, facts),
        _weights_text(facts),
        *(() if judged is None else verdict_section(judged.verdict, judged.wall_s)),
        "![Loss, main metric and learning rate by optimizer step](loss.png)",
        *_prediction_section(facts.predictions),
        *_answer_section(facts.answers),
        "## Data",
        table(
            ("split", "examples"),
            [("training", _count(facts.train_examples)), ("validation", facts.validation_examples)],
        ),
        "\n".join(f"- {plain(note)}" for note in facts.notes),
        "## What was trained",
        fence_text(facts.injection.table()),
        table(("parameters", "count"), _count_rows(facts.parameter_count)),
        *_memory_section(facts.memory),
        "## How",
        table(("setting", "value"), _setting_rows(recipe)),
        "The whole recipe, with every default written out, is in `recipe.yaml`; every logged "
        "loss and metric is in `metrics.jsonl`.",
        "## Made with",
        table(("", ""), _environment_rows(run)),
        "## Use it",
        commands(run, recipe),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _start(recipe: Recipe) -> str:
    start = recipe.start_from
    return "" if start is None else f", starting from the adapter {code(start)}"


def _count(examples: int | None) -> int | str:
    return "read when needed" if examples is None else examples


def _result_table(run: RunDirectory, facts: RunFacts) -> str:
    expected = facts.reference.metrics if facts.reference is not None else {}
    settings = InferenceSettings.load(run.adapter)
    rows: list[tuple[Any, ...]] = [
        (
            f"validation {metric_text(key, settings)}",
            number(value),
            number(expected[key]) if key in expected else "",
        )
        for key, value in facts.metrics.items()
    ]
    rows.append(("mean training loss", number(facts.train_loss), ""))
    rows.append(("optimizer steps", f"{facts.steps:,} of {facts.planned_steps:,}", ""))
    rows.append(("time", _duration(facts.wall_s), ""))
    if facts.throughput is not None:
        rows.append(("tokens without padding", f"{facts.throughput.tokens:,}", ""))
        rows.append(
            ("of these per second of training", f"{facts.throughput.tokens_per_s:,.0f}", "")
        )
        rows.append(("padding in the batches", f"{facts.throughput.padding_share:.1%}", ""))
    if not expected:
        return table(("", "value"), [row[:2] for row in rows])
    is_guess = facts.reference is not None and facts.reference.count
    return table(("", "value", "guessing" if is_guess else "before training"), rows)


def _comparison_text(run: RunDirectory, facts: RunFacts) -> str:
    """Say what to compare the values with, and warn if the model learned nothing."""
    if not facts.metrics:
        return ""
    base = f"`lorakit evaluate {shlex.quote(str(run.path))} --base` measures the base beside it."
    reference = facts.reference
    if reference is None:
        return base
    if reference.count:
        base = (
            "Guessing: the commonest class for the accuracy, the classes' shares for the loss, "
            f"any class for averages over classes. {base}"
        )
    warned = warning(reference, facts.metrics)
    return f"**{warned}** {base}" if warned else base


def _weights_text(facts: RunFacts) -> str:
    early = " Early stopping ended the run." if facts.steps < facts.planned_steps else ""
    if facts.best_step is None:
        return f"The adapter holds the weights of the last step.{early}"
    metric = facts.recipe.training.get("metric_for_best_model")
    return f"The adapter holds the weights of step {facts.best_step}, the best by {metric}.{early}"


def _prediction_section(facts: PredictionFacts | None) -> tuple[str, ...]:
    if facts is None:
        return ()
    which = f"the first {facts.written:,} of" if facts.written < facts.total else "all"
    text = (
        f"`predictions.jsonl` has the predictions for {which} {facts.total:,} validation examples."
    )
    if not facts.classes:
        return ("## Validation examples", text, *example_sections(facts.shown))
    rows = [
        (one.label, f"{one.examples:,}", *map(number, (one.precision, one.recall, one.f1)))
        for one in facts.classes
    ]
    picture = (
        f"{text} `confusion.png` shows which classes are predicted for which.",
        "![Confusion matrix of the validation examples](confusion.png)",
    )
    kind = "class" if facts.has_confusion else "label"
    return (
        "## Validation examples",
        table((kind, "examples", "precision", "recall", "F1"), rows),
        *(picture if facts.has_confusion else (text,)),
        *example_sections(facts.shown),
    )


def _answer_section(answers: ShownExamples) -> tuple[str, ...]:
    sections = example_sections(answers)
    return ("## Validation examples", *sections) if sections else ()


def _memory_section(memory: MemoryFacts) -> tuple[str, ...]:
    if memory.peak_bytes is None:
        return ()
    rows = [("peak", f"{memory.peak_bytes / _GB:.3g} GB")]
    if memory.planned_bytes is not None:
        ratio = memory.planned_bytes / memory.peak_bytes
        rows.insert(0, ("planned", f"{memory.planned_bytes / _GB:.3g} GB"))
        rows.append(("planned / peak", f"{ratio:.2f}"))
    return ("## Memory", table((memory.meaning, "value"), rows))


def _count_rows(count: ParameterCount) -> list[tuple[str, str]]:
    return [
        ("trained", f"{count.trainable:,}"),
        ("of these in low-rank updates", f"{count.lora:,}"),
        ("of these in heads, biases and tokens", f"{count.replaced:,}"),
        ("base", f"{count.base:,}"),
        ("trained share of all", f"{100 * count.trainable_share:.4g}%"),
    ]


def _setting_rows(recipe: Recipe) -> list[tuple[str, Any]]:
    lora = {"r": recipe.lora.r, "lora_alpha": recipe.lora.lora_alpha}
    lora["lora_dropout"] = recipe.lora.lora_dropout
    training = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in recipe.training.items()
        if value is not None
    }
    return [(f"lora.{key}", f"{value:g}") for key, value in lora.items()] + [
        (f"training.{key}", value) for key, value in training.items()
    ]


def _environment_rows(run: RunDirectory) -> list[tuple[str, Any]]:
    facts = json.loads(run.environment_file.read_text(encoding="utf-8"))
    rows = [("Python", facts["python"]), ("platform", facts["platform"])]
    rows.append(("processor cores", facts["cpu_count"]))
    rows.append(("accelerator", facts["accelerator"] or "none"))
    rows += [(name, version) for name, version in facts["versions"].items() if version]
    return rows


def commands(run: RunDirectory, recipe: Recipe) -> str:
    """Return the next commands, with every path quoted for the shell."""
    path = shlex.quote(str(run.path))
    lines = (
        f'lorakit generate {path} "..." --base   # try it beside the base',
        f"lorakit evaluate {path} --data FILE   # measure it on other data",
        f"lorakit merge {path} {shlex.quote(f'{run.path}-merged')}   # one ordinary checkpoint",
    )
    python = (
        "from lorakit import load_adapter",
        "",
        f"load_adapter(model, {str(run.adapter)!r})  # model: {escaped(recipe.model)}",
    )
    parts = (fence_text("\n".join(lines)), "In Python:", fence_text("\n".join(python), "python"))
    return "\n\n".join(parts)


def _duration(wall_s: float) -> str:
    """Return a duration in readable units.

    >>> _duration(75.2)
    '1 min 15 s'
    """
    if wall_s < 60:
        return f"{wall_s:.1f} s"
    minutes, seconds = divmod(round(wall_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
