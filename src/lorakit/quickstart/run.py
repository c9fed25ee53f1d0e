"""The quickstart: train the base model of the package to classify docstrings."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorakit.analysis import guessing
from lorakit.config import LoraConfig, TaskType
from lorakit.quickstart.compare import (
    COMPARED,
    FULL,
    HEAD_ONLY,
    MethodResult,
    OnEvent,
    train_without_adapter,
)
from lorakit.quickstart.docstrings import DocstringFiles, write_docstrings
from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.recipe import DataConfig, Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.run import TrainResult, train
from lorakit.training.stop_request import StopRequest

LORA = "LoRA"
Dtype = Literal["auto", "float32", "bfloat16"]

# Hyperparameters. The learning rates are the best of a small search for each method with an
# earlier checkpoint: LoRA 2e-3 and 5e-3, full 5e-4 and 1e-3, head 1e-2.
RANK = 16
LORA_ALPHA = 32
BATCH_ROWS = 16
EPOCHS = 5
WARMUP_SHARE = 0.1
MAX_LENGTH_TOKENS = 96
LEARNING_RATES = {LORA: 2e-3, HEAD_ONLY: 1e-2, FULL: 1e-3}

EXAMPLES = 3
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class Example:
    """One held-out docstring with its prediction.

    Attributes:
        text: The docstring.
        label: Package of the docstring.
        prediction: Package that the model predicts.
        probability: Probability of the prediction, in [0, 1].
    """

    text: str
    label: str
    prediction: str
    probability: float


@dataclass(frozen=True)
class QuickstartResult:
    """Result of the quickstart.

    Attributes:
        training: Result of the LoRA run.
        methods: LoRA first, then the methods it is compared with.
        examples: Held-out docstrings with predictions.
        checkpoint_bytes: Size of the weights of the base model on disk.
        guessing_accuracy: Accuracy of always guessing the commonest package, as in the report.
    """

    training: TrainResult
    methods: tuple[MethodResult, ...]
    examples: tuple[Example, ...]
    checkpoint_bytes: int
    guessing_accuracy: float


def quickstart(
    output: Path,
    *,
    seed: int = 42,
    compare: bool = False,
    dtype: Dtype = "auto",
    on_event: OnEvent | None = None,
    stop: StopRequest | None = None,
) -> QuickstartResult:
    """Collect docstrings, train a LoRA adapter on them and try it.

    Args:
        output: New or empty directory; examples are written to `data/`, the run to `lora/`.
        seed: Seed of the split, the head, the factors and the order of examples.
        compare: Whether to also train the head alone and all weights on the same examples.
        dtype: Dtype of the base in every training; "auto" is chosen once and told by an event.
        on_event: Called with the events of `lorakit.training.train`, with "collected" {train,
            validation, labels} when the examples are on disk, and with "method" {method} before
            each training.
        stop: Request to end the training of the adapter after a checkpoint.

    Returns:
        Results and examples.

    Raises:
        OutputExistsError: `output` is not empty.
        DataError: This Python lacks the sources of its standard library.
        StoppedError: `stop` was set; the run in `lora/` can be resumed.
    """
    emit = on_event or (lambda name, payload: None)
    RunDirectory.refuse_occupied(output)
    files = write_docstrings(output / "data", seed=seed)
    emit(
        "collected",
        {"train": files.train, "validation": files.validation, "labels": files.labels},
    )
    recipe = quickstart_recipe(files, output / "lora", seed, dtype)

    evaluations: list[Mapping[str, float]] = []

    def listen(name: str, payload: dict[str, Any]) -> None:
        if name == "evaluation":
            evaluations.append(payload["metrics"])
        emit(name, payload)

    emit("method", {"method": LORA})
    trained = train(recipe, on_event=listen, stop=stop)
    methods = [
        MethodResult(
            method=LORA,
            accuracy_before=evaluations[0]["eval_accuracy"],
            accuracy=trained.metrics["eval_accuracy"],
            trainable_parameters=trained.parameter_count.trainable,
            saved_bytes=(trained.adapter_path / WEIGHTS_NAME).stat().st_size,
            duration_s=trained.wall_s,
        )
    ]
    run = RunDirectory(trained.run_dir)
    same_dtype = recipe.with_precision_of(run.recipe())
    for method in COMPARED if compare else ():
        emit("method", {"method": method})
        methods.append(train_without_adapter(same_dtype, method, LEARNING_RATES[method], emit))
    rows = run.metrics()
    guessed = next(row for row in rows if row["event"] == guessing.EVENT)
    weights = base_model_path() / "model.safetensors"
    return QuickstartResult(
        training=trained,
        methods=tuple(methods),
        examples=classify_examples(trained.adapter_path, files.validation, seed),
        checkpoint_bytes=weights.stat().st_size,
        guessing_accuracy=guessed["eval_accuracy"],
    )


def quickstart_recipe(
    files: DocstringFiles, output: Path, seed: int, dtype: Dtype = "float32"
) -> Recipe:
    """Return the recipe of the quickstart, which `lorakit train` also accepts.

    Args:
        files: Examples with "text" and "label".
        output: Run directory.
        seed: Seed of all random numbers.
        dtype: Dtype of the base. The packaged weights are bfloat16; float32 is fast on every CPU.
    """
    return Recipe(
        model=str(base_model_path()),
        task=TaskType.SEQ_CLS,
        dtype=dtype,
        data=DataConfig(
            train=str(files.train),
            validation=str(files.validation),
            text="text",
            label="label",
            max_length=MAX_LENGTH_TOKENS,
        ),
        lora=LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"),
        training={
            "learning_rate": LEARNING_RATES[LORA],
            "num_train_epochs": EPOCHS,
            "warmup_steps": WARMUP_SHARE,
            "per_device_train_batch_size": BATCH_ROWS,
            "per_device_eval_batch_size": 4 * BATCH_ROWS,
            "eval_on_start": True,
            "seed": seed,
        },
        output=str(output),
    )


def classify_examples(adapter: Path, validation_examples: Path, seed: int) -> tuple[Example, ...]:
    """Classify a few random held-out docstrings of different packages.

    Args:
        adapter: Directory of the trained adapter.
        validation_examples: JSON Lines file with "text" and "label".
        seed: Seed of the sampling, which does not depend on predictions.
    """
    from lorakit.inference import classify, load_for_inference

    lines = validation_examples.read_text(encoding="utf-8").splitlines()
    examples = sample_examples([json.loads(line) for line in lines], seed)
    loaded = load_for_inference(adapter)
    predictions = classify(loaded, [example["text"] for example in examples])
    return tuple(
        Example(example["text"], example["label"], predicted.label, predicted.probability)
        for example, predicted in zip(examples, predictions, strict=True)
    )


def sample_examples(examples: Sequence[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Return random examples with different labels."""
    shuffled = random.Random(seed).sample(examples, len(examples))
    by_label: dict[str, dict[str, str]] = {}
    for example in shuffled:
        if len(by_label) < EXAMPLES:
            by_label.setdefault(example["label"], example)
    return list(by_label.values())
