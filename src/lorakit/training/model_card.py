"""Write README.md beside a trained adapter: the model card that hubs show."""

from __future__ import annotations

import json
from pathlib import Path

from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.analysis.metric_text import metric_text
from lorakit.config import TaskType
from lorakit.files.atomic import write_text
from lorakit.libraries.hub import is_hub_id
from lorakit.models.pretrained import auto_model
from lorakit.recipes.numerics import package_version
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.markdown_text import code, fence_text, number, plain, table
from lorakit.training.report import RunFacts

CARD_FILE = "README.md"

_PIPELINES = {
    TaskType.CAUSAL_LM: "text-generation",
    TaskType.SEQ_CLS: "text-classification",
    TaskType.TOKEN_CLS: "token-classification",
}
"""The hub's names of tasks, by which it files a model; it has several for SEQ_2_SEQ_LM."""


def write_card(run: RunDirectory, facts: RunFacts) -> None:
    """Write README.md into the directory of a run's adapter."""
    settings = InferenceSettings.load(run.adapter)
    write_text(run.adapter / CARD_FILE, card_text(run.path.name, facts, settings))


def card_text(name: str, facts: RunFacts, settings: InferenceSettings) -> str:
    """Return the model card as Markdown, with the hub's metadata before it.

    It names files and local bases without their directories, as it is made to be shared.

    Args:
        name: Name of the run.
        facts: What the run's report says.
        settings: Task, labels and lineage of the adapter.
    """
    recipe, judged = facts.recipe, facts.judgement
    base = recipe.model if is_hub_id(recipe.model, is_base=True) else None
    sections = [
        _metadata(base, recipe.task),
        f"# {plain(name)}",
        "" if judged is None else f"**{plain(judged.verdict.sentence)}**",
        f"A LoRA adapter for {code(_shared_name(recipe.model))}, task {recipe.task}, trained with "
        f"lorakit {package_version('lorakit')}.{_note_on_base(base, recipe)}",
        "## Use it",
        f"With lorakit, which takes the labels and the form of inputs from `{SETTINGS_FILE}`; "
        "`ADAPTER` is this directory or its id on the hub:",
        fence_text(_lorakit_lines(base), "bash"),
        "With PEFT:",
        fence_text(_peft_lines(base, recipe, settings), "python"),
        "## Result",
        _result_table(facts, settings),
        "## Training",
        table(("", "value"), _training_rows(facts)),
        _data_table(settings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(base: str | None, task: TaskType) -> str:
    """Return what the hub reads: the base if it is on the hub, the library, the task, tags."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        library_name="peft",
        pipeline_tag=_PIPELINES.get(task),
        tags=["lora", "lorakit"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _note_on_base(base: str | None, recipe: Recipe) -> str:
    note = ""
    if base is None:
        note = " The base is a local directory; BASE stands for the place where you have it."
    if recipe.quantization is None:
        return note
    return f"{note} In training it had {recipe.quantization.bits} bits, which lorakit repeats."


def _lorakit_lines(base: str | None) -> str:
    option = " --base-model BASE" if base is None else ""
    return (
        f'lorakit generate ADAPTER "..."{option}   # try it\n'
        f"lorakit predict ADAPTER FILE{option}     # a whole file, with new columns"
    )


def _peft_lines(base: str | None, recipe: Recipe, settings: InferenceSettings) -> str:
    auto_class = auto_model(recipe.task).__name__
    options: list[str] = []
    if recipe.revision is not None:
        options.append(f"revision={json.dumps(recipe.revision)}")
    if settings.dtype is not None:
        options.append(f'dtype="{settings.dtype}"')
    if settings.labels is not None:
        options.append(f"num_labels={len(settings.labels)}")
    if settings.problem_type is not None:
        options.append(f'problem_type="{settings.problem_type}"')
    arguments = ", ".join((f'"{base or "BASE"}"', *options))
    return "\n".join(
        (
            "from peft import PeftModel",
            f"from transformers import {auto_class}, AutoTokenizer",
            "",
            f"base = {auto_class}.from_pretrained({arguments})",
            'model = PeftModel.from_pretrained(base, "ADAPTER")',
            'tokenizer = AutoTokenizer.from_pretrained("ADAPTER")',
        )
    )


def _result_table(facts: RunFacts, settings: InferenceSettings) -> str:
    if not facts.metrics:
        return "It was trained without validation examples."
    rows = [(metric_text(key, settings), number(value)) for key, value in facts.metrics.items()]
    return table((f"on {facts.validation_examples:,} validation examples", "value"), rows)


def _training_rows(facts: RunFacts) -> list[tuple[str, str]]:
    recipe = facts.recipe
    examples = facts.train_examples
    rows = [
        ("examples", "streamed" if examples is None else f"{examples:,}"),
        ("optimizer steps", f"{facts.steps:,}"),
        ("learning rate", f"{recipe.training.get('learning_rate', '')}"),
        ("rank", f"{recipe.lora.r}"),
        ("lora_alpha", f"{recipe.lora.lora_alpha:g}"),
        ("trained parameters", f"{facts.parameter_count.trainable:,}"),
    ]
    return [row for row in rows if row[1]]


def _data_table(settings: InferenceSettings) -> str:
    """Return the data of the run; with the digests somebody can tell whether a file is the same."""
    lineage = settings.lineage
    if lineage is None or not lineage.data:
        return ""
    rows = [(_shared_name(one.name), one.sha256 or "") for one in lineage.data]
    return table(("data", "SHA-256"), rows)


def _shared_name(name: str) -> str:
    """Return a hub id as it is, and of a path its last part."""
    return name if is_hub_id(name, is_base=True) else Path(name).name
