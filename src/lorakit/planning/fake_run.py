"""A run on fake tensors: everything that its first step needs, without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel

from lorakit.errors import ConfigError, LorakitError, PlanError
from lorakit.files.atomic import scratch_directory
from lorakit.planning.fake_model import build_fake_model
from lorakit.planning.fake_world import FakeWorld
from lorakit.planning.planned_examples import PlannedExamples, planned_examples
from lorakit.planning.planned_trainer import planned_trainer_class
from lorakit.planning.sources import Sources, find_sources
from lorakit.planning.step_memory import StepMemory, longest_batch, run_step
from lorakit.quantization.devices import default_device
from lorakit.recipes.recipe import Recipe
from lorakit.training.arguments import build_arguments, resolve_training
from lorakit.training.dtype_choice import candidates
from lorakit.training.starting_point import StartingPoint
from lorakit.training.tasks import Loaded, Task, task_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

Method = Literal["adapter", "full"]


@dataclass(frozen=True)
class FakeRun:
    """A run whose tensors have shapes but no values."""

    recipe: Recipe
    """The recipe, with the assumed dtype and with the adapter that it starts from."""
    method: Method
    device: torch.device
    """Device of the run."""
    tensors_on: torch.device
    """Device of the fake tensors: the same, or the CPU where torch does not support it."""
    model: PreTrainedModel
    """The base, with the adapter if there is one."""
    trainer: Any
    examples: PlannedExamples
    batch: dict[str, Any]
    """The longest batch, of real tensors."""
    dtype_note: str | None
    """Why this dtype is assumed; None if the recipe names one."""
    world: FakeWorld

    def step(self) -> StepMemory:
        """Run a step, and return its memory.

        Raises:
            PlanError: The step depends on the values of the weights.
        """
        with self.world.activate():
            batch = self.world.fake(self.batch, self.tensors_on)
            try:
                return run_step(self.trainer, batch)
            except LorakitError:
                raise
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                raise PlanError(
                    f"The step of this {type(self.model).__name__} fails on fake tensors: "
                    f"{reason}. If it runs on real ones, measure it: lorakit plan RECIPE --measure."
                ) from error


def build_fake_run(
    recipe: Recipe | str | Path,
    *,
    method: Method = "adapter",
    device: str | None = None,
    download: bool = False,
    sources: Sources | None = None,
) -> FakeRun:
    """Build model, adapter, trainer and batch of a recipe on fake tensors; see `plan`.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError, QuantizationError: Errors of
            training that can be detected without weights.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe = Recipe.check(recipe.model_dump(mode="json"), "the recipe")
    place = _parse_device(device) if device is not None else _device_of(recipe)
    choice = candidates(recipe, place).without_measuring() if recipe.dtype == "auto" else None
    recipe = choice.precision.apply_to(recipe) if choice else recipe
    start = StartingPoint.of(recipe)
    recipe = recipe if start is None else start.resolve(recipe)
    sources = sources or find_sources(recipe, task_of(recipe), start, download=download)
    task = sources.task
    world, tensors_on = FakeWorld(), _fake_tensor_device(place)
    model = build_fake_model(
        *(recipe, task, sources.labels, sources.tokenizer, place, tensors_on, world),
        trains_all=method == "full",
        start=start,
    )
    examples = planned_examples(sources, recipe, model)
    with scratch_directory("lorakit-plan-") as scratch:  # a trainer creates its output directory
        arguments = _arguments(recipe, task, examples, place, scratch)
        # The trainer requires validation examples, although it does not evaluate.
        encoded = replace(examples.encoded, validation=examples.encoded.train)
        with world.activate():
            trainer = task.build_trainer(
                Loaded(recipe, sources.tokenizer, sources.labels, model),
                *(encoded, arguments, (), planned_trainer_class(task)),
            )
        batch = longest_batch(trainer, examples.longest, examples.train_examples)
    dtype_note = None if choice is None else f"{choice.note}."
    return FakeRun(
        *(recipe, method, place, tensors_on, model, trainer, examples, batch, dtype_note, world)
    )


def _parse_device(name: str) -> torch.device:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"Cannot plan for the device '{name}': expected cpu or cuda.")
    return torch.device(name)


def _device_of(recipe: Recipe) -> torch.device:
    return torch.device("cpu") if recipe.training.get("use_cpu") else default_device()


def _fake_tensor_device(device: torch.device) -> torch.device:
    """Return the device of fake tensors: the given one if torch supports it, else the CPU."""
    is_known = device.type == "cpu" or torch.backends.cuda.is_built()
    return device if is_known else torch.device("cpu")


def _arguments(
    recipe: Recipe, task: Task, examples: PlannedExamples, device: torch.device, output: Path
) -> TrainingArguments:
    has_validation = recipe.data.validation is not None or recipe.data.validation_fraction > 0
    resolved = resolve_training(recipe, task, examples.train_examples or 1, has_validation)
    # Sharding is planned separately; here there is one process.
    values = {key: value for key, value in resolved.items() if not key.startswith("fsdp")}
    return build_arguments(values, task, output, device.type)
