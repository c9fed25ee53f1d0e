"""Prepare everything that a run needs before its first step, without writing files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from transformers import set_seed

from lorakit.config import SINGLE_LABEL
from lorakit.data import Splits, load_splits
from lorakit.distributed.processes import (
    init_process_groups,
    local_rank_zero_first,
    process_count,
    run_on_all,
    run_on_main,
)
from lorakit.errors import ConfigError, DataError, did_you_mean, first_few
from lorakit.injection import Injection, add_adapter, count_parameters, set_adapter
from lorakit.models.new_tokens import require_new_tokens_in_examples
from lorakit.quantization.small_parameters import keep_small_parameters_in_float32
from lorakit.recipes.recipe import Recipe
from lorakit.training.arguments import build_arguments, resolve_training
from lorakit.training.callbacks import EventHandler
from lorakit.training.dtype_choice import Candidates, DtypeChoice, candidates, fastest
from lorakit.training.dtype_timing import time_precisions
from lorakit.training.encode_once import encode_once_per_machine
from lorakit.training.evaluation_metrics import require_metric
from lorakit.training.objectives.reference import REFERENCE
from lorakit.training.starting_point import StartingPoint
from lorakit.training.tasks import Encoded, Task, task_of, task_of_examples
from lorakit.training.tasks.base import Loaded, base_settings, seed_of

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )


LoadBase: TypeAlias = (
    "Callable[[Recipe, Task, PreTrainedTokenizerBase, tuple[str, ...] | None], PreTrainedModel]"
)


@dataclass(frozen=True)
class Setup(Loaded):
    """What a run needs: what its task loaded, with the adapter, the examples and the arguments.

    Every training argument of its recipe is written out.
    """

    task: Task
    splits: Splits
    injection: Injection
    encoded: Encoded
    arguments: TrainingArguments
    dtype_choice: DtypeChoice | None = None
    """The choice that `dtype: auto` left open; None if the recipe named a dtype."""
    start: StartingPoint | None = None
    """The adapter that the recipe starts from."""

    def build_trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> Trainer:
        """Build the task's trainer."""
        return self.task.build_trainer(self, self.encoded, self.arguments, callbacks)


def prepare(
    recipe: Recipe,
    emit: EventHandler,
    *,
    check: Callable[[Recipe], None] | None = None,
    attach: Callable[[PreTrainedModel], Injection] | None = None,
    load_base: LoadBase | None = None,
    labels: tuple[str, ...] | None = None,
    load: Callable[..., Splits] = load_splits,
    measures_dtype: bool = True,
    kept_start: Path | None = None,
    tokenizer_of: Path | None = None,
) -> Setup:
    """Load the data and the base, add the adapter and encode the examples, after cheap checks.

    Each of several processes loads the base, but only one per machine tokenizes the examples.

    Args:
        recipe: The recipe.
        emit: Receives the events "dtype", "data" and "injected".
        check: Called with the resolved recipe before anything heavy is loaded; may raise.
        attach: Adds the adapter to the base; by default the one that the recipe starts from, or
            a new one.
        load_base: Loads the base from the recipe, its task, its tokenizer and its labels; None
            loads a copy for this run.
        labels: The label names by id of an existing adapter; by default those of the adapter that
            the recipe starts from, or of the examples.
        load: Reads the examples.
        kept_start: A run's copy of the adapter that it started from.
        tokenizer_of: Directory of the tokenizer to load; None loads that of the adapter that the
            recipe starts from, or the base's.
        measures_dtype: Whether to time steps where `dtype: auto` needs it; else it is float32.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: The recipe or what it names is
            wrong.
    """
    init_process_groups(recipe.training.get("use_cpu"), recipe.training.get("ddp_timeout"))
    recipe, task = run_on_all(lambda: _check(recipe))
    start = local_rank_zero_first(lambda: StartingPoint.of(recipe, kept_start))
    if start is not None:
        recipe, labels = start.resolve(recipe), labels or start.labels
    seed = seed_of(recipe)
    splits = local_rank_zero_first(
        lambda: load(recipe.data, seed, task.label_column(recipe), task.columns(recipe))
    )
    task = run_on_all(lambda: task_of_examples(recipe, splits))
    recipe = with_problem_type(recipe, task)
    if start is not None:
        require_same_problem(task, start)
    training, arguments = run_on_all(lambda: _arguments(recipe, task, splits))
    recipe = recipe.model_copy(update={"training": training})
    if check is not None:
        check(recipe)
    found = run_on_all(lambda: task.labels(splits, recipe))
    if labels is not None:
        source = recipe.data.validation if splits.only_validation else recipe.data.train_name
        require_known_labels(found or (), labels, source, task.label_column(recipe))
    labels = found if labels is None else labels
    require_metric(training, task.metric_names(labels, training))
    tokenizer = local_rank_zero_first(
        lambda: task.load_tokenizer(recipe, tokenizer_of or (start and start.tokenizer))
    )
    if start is not None:
        start.check_new_tokens(recipe, tokenizer)

    def load_adapted(recipe: Recipe) -> tuple[PreTrainedModel, Injection]:
        if load_base is None:
            model = task.load_base(recipe, tokenizer, labels)
        else:
            model = load_base(recipe, task, tokenizer, labels)
        if recipe.float32_small_parameters:
            keep_small_parameters_in_float32(model)
        set_seed(seed)  # initializes the adapter
        if attach is not None:
            injection = attach(model)
        elif start is not None:
            injection = start.attach(model, recipe)
        else:
            config = task.lora_config(Loaded(recipe, tokenizer, labels, model))
            injection = add_adapter(model, config)
        if attach is None and start is not None and task.needs_reference:
            start.attach(model, recipe, REFERENCE, trainable=False)
            set_adapter(model, injection.name)
        return model, injection

    def encode(model: PreTrainedModel) -> Encoded:
        loaded = Loaded(recipe, tokenizer, labels, model)
        return encode_once_per_machine(
            lambda: task.encode(splits, loaded).with_mixture(splits.mixture),
            keep_files=arguments.dataloader_num_workers > 0,
        )

    def build_trainer(model: Any, encoded: Encoded, quiet: TrainingArguments) -> Trainer:
        return task.build_trainer(Loaded(recipe, tokenizer, labels, model), encoded, quiet)

    encoded = choice = None
    if recipe.dtype == "auto":
        possible = run_on_all(lambda: candidates(recipe, arguments.device))
        choice = possible.without_measuring()
        if possible.decided is None and measures_dtype:
            encoded, choice = _measure_dtype(
                *(possible, recipe, arguments, load_adapted, encode, build_trainer)
            )
        recipe = choice.precision.apply_to(recipe)
        # A trainer that was built meanwhile has changed the state behind the old arguments.
        arguments = run_on_all(lambda: build_arguments(recipe.training, task, Path(recipe.output)))
        emit("dtype", {"note": choice.note})
    model, injection = run_on_all(lambda: load_adapted(recipe))
    emit("injected", {"injection": injection, "parameter_count": count_parameters(model)})
    if encoded is None:
        encoded = encode(model)
    else:  # it was encoded for a model in another dtype
        settings = {**encoded.settings, **base_settings(recipe, model)}
        encoded = replace(encoded, settings=settings)
    if attach is None and start is None and encoded.stream is None:
        require_new_tokens_in_examples(encoded.train, tokenizer, recipe)
    if not splits.only_validation:
        _require_full_batch(encoded, arguments)
    emit("data", _data_event(splits, encoded) | {"task_type": task.task_type, "labels": labels})
    return Setup(
        *(recipe, tokenizer, labels, model, task, splits, injection, encoded, arguments, choice),
        start,
    )


def _measure_dtype(
    possible: Candidates,
    recipe: Recipe,
    arguments: TrainingArguments,
    load_adapted: Callable[[Recipe], tuple[PreTrainedModel, Injection]],
    encode: Callable[[PreTrainedModel], Encoded],
    build_trainer: Callable[[Any, Encoded, TrainingArguments], Trainer],
) -> tuple[Encoded, DtypeChoice]:
    """Time the candidates on the recipe's model; all its processes take the main one's choice."""
    models = {
        precision: run_on_all(lambda p=precision: load_adapted(p.apply_to(recipe)))[0]
        for precision in possible.precisions
    }
    encoded = encode(next(iter(models.values())))
    times = time_precisions(models, encoded, arguments, build_trainer)
    return encoded, run_on_main(lambda: fastest(times))


def _check(recipe: Recipe) -> tuple[Recipe, Task]:
    recipe = Recipe.check(recipe.model_dump(mode="json"), "the recipe")
    recipe.evaluation.require_possible(
        recipe.task, recipe.training, has_objective=recipe.objective is not None
    )
    if recipe.data.streaming and process_count() > 1:
        raise ConfigError(
            f"A stream is read by one process: got data.streaming=true in {process_count()} "
            "processes, expected one. Leave it out, or train in one process."
        )
    return recipe, task_of(recipe)


def with_problem_type(recipe: Recipe, task: Task) -> Recipe:
    """Return the recipe with what the labels were found to be, unless they are classes."""
    if task.problem_type in (None, SINGLE_LABEL):
        return recipe
    data = recipe.data.model_copy(update={"problem_type": task.problem_type})
    return recipe.model_copy(update={"data": data})


def require_same_problem(task: Task, start: StartingPoint) -> None:
    """Refuse an adapter whose head predicts something else than the labels are.

    Raises:
        ConfigError: It was trained on labels of another kind.
    """
    learnt = start.settings.problem_type or SINGLE_LABEL
    if task.problem_type not in (None, learnt):
        raise ConfigError(
            f"The labels do not fit the adapter in start_from: got {task.problem_type}, expected "
            f"{learnt} as it was trained. Name other data, or leave start_from out."
        )


def _arguments(
    recipe: Recipe, task: Task, splits: Splits
) -> tuple[dict[str, Any], TrainingArguments]:
    training = resolve_training(recipe, task, len(splits.train), splits.validation is not None)
    return training, build_arguments(training, task, Path(recipe.output))


def _require_full_batch(encoded: Encoded, arguments: TrainingArguments) -> None:
    """Refuse to leave out incomplete batches where no other is left."""
    examples, batch = encoded.epoch_examples, arguments.train_batch_size * process_count()
    if arguments.dataloader_drop_last and encoded.stream is None and examples < batch:
        raise ConfigError(
            f"No batch is left to train on: got {examples} training examples and "
            f"training.dataloader_drop_last=true, expected at least the {batch} of a batch. Leave "
            "dataloader_drop_last out, or lower training.per_device_train_batch_size."
        )


def require_known_labels(
    found: Sequence[str], labels: tuple[str, ...], source: str | None, column: str | None
) -> None:
    """Refuse examples with labels that the adapter does not have.

    Args:
        found: The labels of the examples.
        labels: Those of the adapter.
        source: Name of the examples, for errors.
        column: Their column; None if they are numbers, which may have other names.

    Raises:
        DataError: Lists the unknown labels.
    """
    if column is None:
        if found and len(found) != len(labels):
            raise DataError(
                f"The examples of '{source}' have another number of numbers than the adapter was "
                f"trained on: got {first_few(found)}, expected {len(labels)}: {first_few(labels)}. "
                "Name the right column in data.label."
            )
        return
    unknown = [label for label in found if label not in labels]
    if unknown:
        raise DataError(
            f"The examples of '{source}' have labels that the adapter was not trained on: got "
            f"{first_few(unknown)}, expected {first_few(labels, 20)} in '{column}'."
            f"{did_you_mean(unknown[0], labels)} Correct the labels, leave those examples out, or "
            "train a new adapter."
        )


def _data_event(splits: Splits, encoded: Encoded) -> dict[str, Any]:
    notes = (*splits.notes, *encoded.notes)
    if splits.only_validation:  # the stand-ins are no training examples
        notes = tuple(note for note in notes if " training " not in note)
    count = None if encoded.stream is not None else len(splits.train)
    return {
        "train_examples": 0 if splits.only_validation else count,
        "validation_examples": 0 if splits.validation is None else len(splits.validation),
        "notes": notes,
    }
