"""report.md and loss.png: what was trained, how well it does, and how to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.atomic import write_text
from lorakit.injection import Injection, ParameterCount
from lorakit.png import save_png
from lorakit.training.recipe import Recipe
from lorakit.training.run_directory import RunDirectory

_PLOT_INCHES = (8, 4.5)
_PLOT_DPI = 120
_GB = 1e9


@dataclass(frozen=True)
class MemoryFacts:
    """The peak of memory, planned and real."""

    planned_bytes: int | None
    """None where nothing was planned."""
    peak_bytes: int | None
    """None where the system does not tell."""
    meaning: str
    """What is counted."""


@dataclass(frozen=True)
class RunFacts:
    """What a report tells."""

    recipe: Recipe
    injection: Injection
    parameter_count: ParameterCount
    train_rows: int
    validation_rows: int
    notes: tuple[str, ...]
    metrics: dict[str, float]
    train_loss: float
    steps: int
    planned_steps: int
    best_step: int | None
    """Optimizer step of the checkpoint that was kept; None keeps the last step's weights."""
    wall_s: float
    memory: MemoryFacts


def write_report(run: RunDirectory, facts: RunFacts) -> None:
    """Write loss.png, then report.md; the latter marks the run as finished."""
    plot_losses(run, facts.best_step)
    write_text(run.report_file, report_text(run, facts))


def report_text(run: RunDirectory, facts: RunFacts) -> str:
    """Return the report as Markdown."""
    recipe = facts.recipe
    sections = [
        f"# {run.path.name}",
        f"A LoRA adapter for `{recipe.model}`, task {recipe.task}, trained on "
        f"`{recipe.data.train}`.",
        "## Result",
        _result_table(facts),
        _kept(facts),
        "![Training and validation loss](loss.png)",
        "## Data",
        _table(
            ("split", "rows"),
            [("training", facts.train_rows), ("validation", facts.validation_rows)],
        ),
        "\n".join(f"- {note}" for note in facts.notes),
        "## What was trained",
        f"```\n{facts.injection.table()}\n```",
        _table(("parameters", "count"), _count_rows(facts.parameter_count)),
        *_memory_section(facts.memory),
        "## How",
        _table(("setting", "value"), _setting_rows(recipe)),
        "The whole recipe, with every default written out, is in `recipe.yaml`; every logged "
        "loss and metric is in `metrics.jsonl`.",
        "## Made with",
        _table(("", ""), _environment_rows(run)),
        "## Use it",
        _commands(run, recipe),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def plot_losses(run: RunDirectory, best_step: int | None = None) -> None:
    """Draw training and validation loss over the optimizer steps into loss.png."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = run.metrics()
    figure = Figure(figsize=_PLOT_INCHES, layout="constrained")
    axes = figure.add_subplot()
    curves = (("loss", "training", "-", ""), ("eval_loss", "validation", "-", "o"))
    for key, label, line, marker in curves:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            steps, losses = zip(*points, strict=True)
            single = len(points) == 1
            axes.plot(steps, losses, line, marker="o" if single else marker, label=label)
    if best_step is not None:
        axes.axvline(best_step, linestyle=":", color="gray", label=f"kept: step {best_step}")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss (mean cross-entropy, nats)")
    axes.set_title(f"Loss of {run.path.name}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, run.loss_plot, _PLOT_DPI)


def _result_table(facts: RunFacts) -> str:
    rows: list[tuple[str, Any]] = [
        (key.removeprefix("eval_").replace("_", " "), _number(value))
        for key, value in facts.metrics.items()
    ]
    rows = [("validation " + name, value) for name, value in rows]
    rows.append(("mean training loss", _number(facts.train_loss)))
    rows.append(("optimizer steps", f"{facts.steps:,} of {facts.planned_steps:,}"))
    rows.append(("time", _duration(facts.wall_s)))
    return _table(("", "value"), rows)


def _kept(facts: RunFacts) -> str:
    early = " Early stopping ended the run." if facts.steps < facts.planned_steps else ""
    if facts.best_step is None:
        return f"The adapter holds the weights of the last step.{early}"
    metric = facts.recipe.training.get("metric_for_best_model")
    return f"The adapter holds the weights of step {facts.best_step}, the best by {metric}.{early}"


def _memory_section(memory: MemoryFacts) -> tuple[str, ...]:
    if memory.peak_bytes is None:
        return ()
    rows = [("peak", f"{memory.peak_bytes / _GB:.3g} GB")]
    if memory.planned_bytes is not None:
        ratio = memory.planned_bytes / memory.peak_bytes
        rows.insert(0, ("planned", f"{memory.planned_bytes / _GB:.3g} GB"))
        rows.append(("planned / peak", f"{ratio:.2f}"))
    return ("## Memory", _table((memory.meaning, "value"), rows))


def _count_rows(count: ParameterCount) -> list[tuple[str, str]]:
    return [
        ("trained", f"{count.trainable:,}"),
        ("of these in low-rank updates", f"{count.lora:,}"),
        ("of these in heads, biases and tokens", f"{count.replaced:,}"),
        ("base", f"{count.base:,}"),
        ("trained share of base", f"{count.trainable_share_of_base:.4%}"),
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


def _commands(run: RunDirectory, recipe: Recipe) -> str:
    return "\n".join(
        (
            "```",
            f'lorakit generate {run.path} "..." --base   # try it beside the base',
            f"lorakit evaluate {run.path} --data FILE   # measure it on other data",
            f"lorakit merge {run.path} {run.path}-merged   # one ordinary checkpoint",
            "```",
            "",
            "In Python:",
            "",
            "```python",
            "from lorakit import load_adapter",
            "",
            f"load_adapter(model, {str(run.adapter)!r})  # model: {recipe.model}",
            "```",
        )
    )


def _table(header: Sequence[str], rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.4g}"


def _duration(wall_s: float) -> str:
    """Return seconds as people read them.

    >>> _duration(75.2)
    '1 min 15 s'
    """
    if wall_s < 60:
        return f"{wall_s:.1f} s"
    minutes, seconds = divmod(round(wall_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
