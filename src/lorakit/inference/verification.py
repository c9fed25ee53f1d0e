"""Verify an adapter: its files, its base, its effect, and the predictions that its run recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from lorakit.adapters import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import adapter_sha256
from lorakit.config import TaskType
from lorakit.errors import DataError, LorakitError, MissingFileError, first_few
from lorakit.inference.input_columns import find_input_columns
from lorakit.inference.loaded import (
    TASKS_WITH_LABELS,
    LoadedModel,
    companions_of,
    load_for_inference,
    locate_adapter,
)
from lorakit.inference.prediction import Classification, LabelSet, Numbers
from lorakit.inference.predictions import predict
from lorakit.models.base_digest import are_different, base_digest
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory

Outcome = Literal["passed", "failed", "not checked"]

_TEXT = "Two people walk slowly along the river and talk about 7 books."
_MOST_TRAINED_TOKENS = 4
"""Trained tokens that replace tokens of the text."""
_ROUNDING = 1e-6
"""Change of the outputs, relative to the largest, that shows no effect."""
_ROWS = 8
"""Predictions of the run that are made again."""
_TOLERANCE, _TOLERANCE_16_BITS = 1e-3, 0.05
"""Largest difference of a probability, or of a number relative to it, for a base in float32 and in
16 bits: other kernels and batches round differently."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    """files, base, fit, effect or predictions."""
    outcome: Outcome
    finding: str
    """What was found, without a full stop."""


def verify_adapter(
    path: str | Path,
    base: str | None = None,
    *,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Check]:
    """Yield the outcome of each check of an adapter as soon as it is known.

    - files: the two files are complete and from one save, and all numbers are finite;
    - base: it has the weights of the training;
    - fit: every tensor has its module in the base, with its shape;
    - effect: the adapter changes the outputs for a text, and these are finite;
    - predictions: the first rows of the run's predictions.jsonl come out again, where classes,
      labels, tags or numbers are predicted.

    A check that cannot be made is "not checked", as where the base that the adapter names is not on
    this machine; after one that fails, those that need what it checks are left out.

    Args:
        path: A run, an adapter or checkpoint directory, or the hub id of an adapter.
        base: Base model; None takes the one that the adapter names.
        device: None takes the accelerator if there is one, else the CPU.
        trust_remote_code: As for `load_for_inference`.

    Raises:
        MissingFileError: There is no adapter at `path`, or no model at `base`.
    """
    directory, recipe = locate_adapter(path)
    try:
        adapter = Adapter.load(directory)
    except LorakitError as error:
        yield _failed("files", error)
        return
    digest = adapter_sha256(directory)[:12]
    yield Check("files", "passed", f"complete, from one save and finite; sha256 {digest}…")
    revision = recipe.revision if recipe is not None and base is None else None
    settings = InferenceSettings.load(companions_of(directory))
    weights = _check_base(settings, base or adapter.base_model, revision)
    yield weights
    if weights.outcome == "failed":
        return
    try:
        loaded = load_for_inference(path, base, device=device, trust_remote_code=trust_remote_code)
    except MissingFileError as error:
        if base is not None:
            raise
        yield Check("fit", "not checked", _sentence(error))
        return
    except LorakitError as error:
        yield _failed("fit", error)
        return
    yield Check("fit", "passed", f"every tensor has its module in '{loaded.base}'")
    yield _check_effect(loaded, adapter)
    predictions = RunDirectory(directory.parent).predictions_file
    is_checkpoint = directory.name.startswith("checkpoint-")
    has_them = loaded.task_type in TASKS_WITH_LABELS and predictions.is_file()
    if recipe is not None and not is_checkpoint and has_them:
        yield _check_predictions(loaded, recipe, predictions)


def _check_base(settings: InferenceSettings, name: str | None, revision: str | None) -> Check:
    recorded = None if settings.lineage is None else settings.lineage.base_digest
    if name is None:
        return Check("base", "not checked", "the adapter names no base")
    if recorded is None:
        return Check("base", "not checked", "the adapter does not record the weights of its base")
    there = base_digest(name, revision)
    if there is None:
        return Check("base", "not checked", f"'{name}' is not on this machine as safetensors")
    if are_different(recorded, there):
        got = f"the digest {there[:12]}, expected {recorded[:12]}"
        return Check("base", "failed", f"'{name}' has other weights than in training: got {got}")
    return Check("base", "passed", f"'{name}' has the weights of the training")


def _check_effect(loaded: LoadedModel, adapter: Adapter) -> Check:
    adapted, plain = (_outputs(loaded, adapter, use_base) for use_base in (False, True))
    if not adapted.isfinite().all():
        return Check("effect", "failed", "NaN or infinities in the outputs for a text")
    change = ((adapted - plain).abs().max() / plain.abs().max().clamp_min(1e-30)).item()
    if change <= _ROUNDING:
        return Check("effect", "failed", "the outputs for a text are those of the base alone")
    found = f"the outputs for a text differ from the base's, relatively by {change:.2g}"
    zero = [path for path, (A, B) in adapter.factors.items() if not (A.any() and B.any())]
    if zero:
        found += f"; {len(zero)} of {len(adapter.factors)} updates are zero: {first_few(zero)}"
    return Check("effect", "passed", found)


def _outputs(loaded: LoadedModel, adapter: Adapter, use_base: bool) -> Tensor:
    """Return the model's outputs for a text and some trained tokens, in float32."""
    ids = list(loaded.tokenizer(_TEXT, truncation=True, max_length=loaded.max_length)["input_ids"])
    trained = adapter.config.trainable_token_indices or ()
    lists = trained.values() if isinstance(trained, Mapping) else [trained]
    tokens = [token for some in lists for token in some[:_MOST_TRAINED_TOKENS]]
    inner = tokens[: max(len(ids) - 2, 0)]  # both ends stay: some models read their output there
    ids[1 : 1 + len(inner)] = inner
    batch = torch.tensor([ids], device=loaded.model.device)
    inputs = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
    if loaded.task_type is TaskType.SEQ_2_SEQ_LM:
        inputs["decoder_input_ids"] = batch
    with loaded.inference_context(use_base):
        return loaded.model(**inputs).logits.float()


def _check_predictions(loaded: LoadedModel, recipe: Recipe, file: Path) -> Check:
    """Predict the first rows of a run's file again, and compare."""
    name = "predictions"
    try:
        rows = _first_rows(file)
        columns = find_input_columns(loaded, Dataset.from_list(rows), recipe.data)
        inputs = [columns.input_of(row, n, f"'{file}'") for n, row in enumerate(rows, 1)]
        outputs = predict(loaded, inputs)
        differences = _differences(outputs, rows, file)
    except LorakitError as error:
        return Check(name, "not checked", _sentence(error))
    most = _TOLERANCE if loaded.model.dtype == torch.float32 else _TOLERANCE_16_BITS
    for number, difference in enumerate(differences):
        if not difference <= most:  # nor if it is NaN
            found = f"row {number + 1} of {file.name} differs by {difference:.2g}"
            was = rows[number]["prediction"]
            return Check(name, "failed", f"{found}; the run predicted {was!r}")
    found = f"the first {len(rows)} of {file.name} come out again"
    return Check(name, "passed", f"{found}, to {max(differences):.1g}")


def _first_rows(file: Path) -> list[dict[str, Any]]:
    """Return the first rows of a file of predictions.

    Raises:
        DataError: They cannot be read.
    """
    with file.open("rb") as lines:
        try:
            rows = [json.loads(line) for line in islice(lines, _ROWS)]
        except ValueError:
            rows = []
    if not rows or not all(isinstance(row, dict) and "prediction" in row for row in rows):
        raise _unreadable(file)
    return rows


def _differences(
    outputs: Sequence[Any], rows: Sequence[Mapping[str, Any]], file: Path
) -> list[float]:
    """Return how much each output differs from what was recorded.

    Raises:
        DataError: The file has something else than the predictions of this task.
    """
    try:
        return [_difference(output, row) for output, row in zip(outputs, rows, strict=True)]
    except (KeyError, TypeError, ValueError):
        raise _unreadable(file) from None


def _unreadable(file: Path) -> DataError:
    return DataError(
        f"Cannot read the predictions in {file}: expected JSON lines as a run of this task writes "
        "them, with 'prediction'. Restore the file."
    )


def _difference(output: Any, row: Mapping[str, Any]) -> float:
    """Return the largest difference of a probability, or of a number relative to it."""
    recorded: Any = row["prediction"]
    probability: Any = row.get("probability")
    if isinstance(output, Classification):
        return abs(output.probabilities.get(recorded, 0.0) - probability)
    if isinstance(output, LabelSet):
        return max(abs(p - probability[name]) for name, p in output.probabilities.items())
    if isinstance(output, Numbers):
        numbers = recorded if isinstance(recorded, list) else [recorded]
        pairs = zip(output.values.values(), numbers, strict=True)
        return max(abs(one - other) / max(abs(other), 1.0) for one, other in pairs)
    if [word.tag for word in output] != recorded:
        return 1.0
    pairs = zip(output, probability, strict=True)
    return max((abs(word.probability - p) for word, p in pairs), default=0.0)


def _failed(name: str, error: LorakitError) -> Check:
    return Check(name, "failed", _sentence(error))


def _sentence(error: LorakitError) -> str:
    return str(error).rstrip(".")
