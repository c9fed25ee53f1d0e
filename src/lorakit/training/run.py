"""From a recipe to a trained adapter, one way: data, base, adapter, trainer, report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapters import Adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.analysis.guessing import EVENT, guesses, reference_of
from lorakit.distributed.processes import (
    Terminated,
    failing_together,
    is_main,
    main_decides,
    process_count,
    start,
)
from lorakit.distributed.shared_output import require_shared
from lorakit.errors import (
    DiskError,
    StoppedError,
    TrainingError,
)
from lorakit.files.atomic import replacing_directory
from lorakit.files.disks import disk_error
from lorakit.injection import Injection, ParameterCount, count_parameters
from lorakit.recipes import checkpoints
from lorakit.recipes.directory_lock import LOCK_NAME, locking_directory
from lorakit.recipes.numerics import changed_numerics, cpu_notes
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.batch_notes import batch_notes
from lorakit.training.callbacks import EventHandler, RunRecorder, RunTensorBoard, quiet_writers
from lorakit.training.example_digests import KEY, changed_examples, example_digests
from lorakit.training.final_metrics import final_metrics
from lorakit.training.peak_memory import PeakMemory
from lorakit.training.report import MemoryFacts, RunFacts, write_report
from lorakit.training.resuming import require_resumable
from lorakit.training.save_settings import save_settings
from lorakit.training.setup import Setup, prepare
from lorakit.training.stop_request import StopRequest
from lorakit.training.trainers.adapter_trainer import early_stopping, trained_adapter
from lorakit.training.trainers.data_initialization import as_trained
from lorakit.training.trainers.finite_weights import require_sound
from lorakit.training.trainers.stop_at_checkpoint import StopAtCheckpoint
from lorakit.training.trainers.unreached_layers import UnreachedLayers

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class TrainResult:
    """What a run produced."""

    run_dir: Path
    adapter_path: Path
    metrics: dict[str, float]
    """Evaluation of the adapter that was saved, with "eval_" prefixes; empty without validation."""
    train_loss: float
    """Mean over all optimizer steps."""
    steps: int
    wall_s: float
    """Seconds of training, those before a resume included."""
    parameter_count: ParameterCount
    injection: Injection
    files: tuple[Path, ...]
    """What was written and is worth opening."""


def train(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    shared_base: Path | None = None,
    planned_bytes: int | None = None,
    on_event: EventHandler | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train an adapter as a recipe says, into the recipe's run directory.

    Where a launcher has started several processes, each calls this with the same recipe. The main
    one alone writes the run and tells of events.

    Args:
        recipe: A recipe, or the path of its YAML file.
        resume: Go on with the run in `recipe.output` from its newest complete checkpoint. The
            adapter comes out with the same bits as if the run had never stopped.
        shared_base: Directory where all runs of this machine map their base from, so that it lies
            in memory once; None loads a copy for this run alone.
        planned_bytes: The peak that was planned for it, `MemoryPlan.measurable_bytes`; the report
            sets it beside the real one.
        on_event: Called as `on_event(name, payload)` with
            "injected" {injection, parameter_count},
            "data" {train_examples, validation_examples, notes, task_type, labels (class names or
            None)},
            "run_opened" {path, resumed_from (checkpoint path or None), removed (what was wrong, by
            path, with incomplete checkpoints and other files that were deleted), note},
            "notes" {notes} where there is something to know about how the model trains or has
            trained,
            "step" {step, max_steps, epoch, logged, loss, learning_rate} after each step, and once
            more with logged=True when fresh values are logged,
            "evaluation" {the same, metrics},
            "checkpoint" {step, path},
            "finished" {result}.
        stop: Set it to end the run after the optimizer step that is running; of several processes
            it is enough to do so in one. One that is set after the last step changes nothing.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: The recipe or what it names is
            wrong; nothing has been written.
        OutputExistsError: `output` holds a run or other files, or the run to resume is finished
            or is trained by another process.
        CheckpointError: The run to resume was made with another recipe, or by another number of
            processes.
        TrainingError: The loss or the gradients are not numbers, all gradients are zero, or
            memory ran out. A run that had no checkpoint yet is removed.
        DiskError: A disk is full or may not be written to; what there is of the run is kept.
        StoppedError: `stop` was set; a checkpoint has been saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe = recipe.with_absolute_paths()  # a run is used from anywhere
    start(recipe.training.get("use_cpu"), recipe.training.get("ddp_timeout"))
    emit = on_event if on_event is not None and is_main() else _ignore
    with failing_together(), ExitStack() as held:
        main_decides(lambda: _require_place(recipe.output, resume, held))
        check = _refuse_changes if resume else None
        with _disk_errors_explained(Path(recipe.output)):
            setup = prepare(recipe, emit, check=check, shared_base=shared_base)
            run = _open_run(setup, resume, emit, held)
        stop = stop or StopRequest()
        with (
            stop.heeding(),
            _removed_if_it_fails_early(run),
            _disk_errors_explained(run.directory.path),
            _memory_errors_explained(setup),
        ):
            return _fit(setup, run, emit, planned_bytes, stop)


def _require_place(output: str, resume: bool, held: ExitStack) -> None:
    """Look whether the output can be written to, and keep others out of a run that is there."""
    if resume:
        held.enter_context(locking_directory(RunDirectory.open(output).path))
        return
    if (Path(output) / LOCK_NAME).exists():  # of a process that is at work, or was killed
        held.enter_context(locking_directory(Path(output)))
    RunDirectory.refuse_occupied(output)


def _ignore(name: str, payload: dict[str, Any]) -> None:
    """Take no notice of an event."""


def _refuse_changes(recipe: Recipe) -> None:
    """Let the main process refuse to resume a run that would not go on as it was.

    Raises:
        CheckpointError: Names the keys that differ, or the numbers of processes.
        OutputExistsError: The run is finished and the recipe asks for no more steps.
    """
    main_decides(lambda: require_resumable(recipe))


def _open_run(setup: Setup, resume: bool, emit: EventHandler, held: ExitStack) -> _OpenRun:
    """Create the run directory, or bring it back to its newest complete checkpoint."""
    run, event = main_decides(lambda: _reopened(setup) if resume else _created(setup, held))
    emit("run_opened", event)
    require_shared(run.directory.path)
    return run


def _created(setup: Setup, held: ExitStack) -> tuple[_OpenRun, dict[str, Any]]:
    path = Path(setup.recipe.output)
    facts = {KEY: example_digests(setup.encoded), "processes": process_count()}
    run = _OpenRun(RunDirectory.create(path, setup.recipe, held, facts), None, is_new=True)
    return run, {"path": path, "resumed_from": None, "removed": {}, "note": None}


def _reopened(setup: Setup) -> tuple[_OpenRun, dict[str, Any]]:
    path = Path(setup.recipe.output)
    directory = RunDirectory.open(path)
    directory.metrics()  # nothing is removed from a run that cannot go on
    removed = {left: "a file that was being written" for left in directory.remove_leftovers()}
    removed |= checkpoints.remove_incomplete(path)
    checkpoint = checkpoints.newest_complete(path)
    directory.keep_metrics_until(checkpoints.step_of(checkpoint) if checkpoint else -1)
    directory.write_recipe(setup.recipe)
    directory.report_file.unlink(missing_ok=True)
    digests = example_digests(setup.encoded)
    if checkpoint is None:
        note = "There is no complete checkpoint; starting from the beginning."
        directory.write_environment({KEY: digests, "processes": process_count()})
    else:
        file = directory.environment_file
        changes = (changed_examples(file, digests), changed_numerics(file))
        note = " ".join(filter(None, changes)) or None
    event = {"path": path, "resumed_from": checkpoint, "removed": removed, "note": note}
    return _OpenRun(directory, checkpoint, is_new=False), event


@dataclass(frozen=True)
class _OpenRun:
    directory: RunDirectory
    checkpoint: Path | None
    is_new: bool


@contextmanager
def _removed_if_it_fails_early(run: _OpenRun) -> Iterator[None]:
    """Delete a new run directory if training fails before anything in it could be resumed.

    A run that was asked to stop, or whose disk was full, keeps what there is.
    """
    try:
        yield
    except (StoppedError, DiskError):
        raise
    except (Exception, Terminated):
        if is_main() and run.is_new and checkpoints.newest_complete(run.directory.path) is None:
            run.directory.remove()
        raise


@contextmanager
def _disk_errors_explained(path: Path) -> Iterator[None]:
    """Say of a disk that is full or read-only what is safe, and how the run goes on.

    Raises:
        DiskError: The disk of the run directory, or of a cache, could not be written to.
    """
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, DiskError) else disk_error(error, path)
        if told is None:
            raise
        raise DiskError(f"{told} {_what_is_safe(path)}") from error


def _what_is_safe(path: Path) -> str:
    if not RunDirectory(path).recipe_file.exists():
        return "No run has been begun."
    checkpoint = checkpoints.newest_complete(path)
    if checkpoint is None:
        return "No checkpoint is complete yet: with --resume the run starts over."
    return f"{checkpoint} is complete: with --resume the run goes on from there."


@contextmanager
def _memory_errors_explained(setup: Setup) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batch = setup.arguments.per_device_train_batch_size
        raise TrainingError(
            f"Memory ran out with training.per_device_train_batch_size={batch}. Halve it and "
            "double training.gradient_accumulation_steps, set training.activation_checkpointing="
            f"true, or lower data.max_length. ({str(error).splitlines()[0]})"
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator or the CPU's allocator had no memory left to give.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."))
    True
    """
    cpu = "DefaultCPUAllocator"
    return isinstance(error, torch.OutOfMemoryError) or cpu in str(error)


def _fit(
    setup: Setup,
    run: _OpenRun,
    emit: EventHandler,
    planned_bytes: int | None,
    stop: StopRequest,
) -> TrainResult:
    """Train, save the adapter, and write the report."""
    peak = PeakMemory(on_gpu=setup.arguments.device.type == "cuda")
    directory = run.directory
    recorder = RunRecorder(directory, emit)
    tensorboard = RunTensorBoard(directory)
    writers = [recorder, tensorboard] if is_main() else []
    with _restoring_use_cache(setup.model), quiet_writers(), closing(tensorboard):
        main_decides(lambda: _write_guesses(setup, directory))
        unreached = UnreachedLayers()
        others = (*early_stopping(setup.recipe.training), unreached, StopAtCheckpoint(stop))
        trainer = setup.build_trainer([*writers, *others])
        notes = batch_notes(setup.arguments, is_sharded=trainer.is_fsdp_enabled)
        computing = cpu_notes(setup.arguments.device)
        own_notes = (*notes, *computing, *getattr(trainer, "notes", ()))
        if own_notes:
            emit("notes", {"notes": own_notes})
        output = trainer.train(
            resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint)
        )
        unreached_notes = tuple(filter(None, [unreached.note()]))
        if unreached_notes:
            emit("notes", {"notes": unreached_notes})
        metrics = final_metrics(trainer)
    wall_s = main_decides(lambda: recorder.wall_s)
    adapter = trained_adapter(setup.model)
    require_sound(adapter, output.global_step)
    main_decides(lambda: _save_trained_adapter(adapter, setup, directory))
    facts = RunFacts(
        recipe=setup.recipe,
        injection=as_trained(setup.injection, setup.model),
        parameter_count=count_parameters(setup.model),
        train_examples=len(setup.splits.train),
        validation_examples=_rows(setup.splits.validation),
        notes=(*setup.splits.notes, *setup.encoded.notes, *own_notes, *unreached_notes),
        metrics=metrics,
        train_loss=output.training_loss,
        steps=output.global_step,
        planned_steps=trainer.state.max_steps,
        best_step=_best_step(trainer),
        reference=reference_of(directory),
        wall_s=wall_s,
        memory=MemoryFacts(planned_bytes, peak.read(), peak.meaning),
    )
    main_decides(lambda: write_report(directory, facts))
    result = _result(directory, facts)
    emit("finished", {"result": result})
    return result


def _write_guesses(setup: Setup, run: RunDirectory) -> None:
    """Write what guessing gives on the validation examples, once for a run."""
    guessed = guesses(setup.task.task_type, setup.encoded.validation)
    if guessed and not any(row.get("event") == EVENT for row in run.metrics()):
        run.append_metrics({"event": EVENT, "step": 0, **guessed})


@contextmanager
def _restoring_use_cache(model: Any) -> Iterator[None]:
    """Give the model its key-value cache setting back after training, which needs none."""
    before = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            model.config.use_cache = before


def _save_trained_adapter(adapter: Adapter, setup: Setup, run: RunDirectory) -> None:
    """Write adapter, tokenizer and chat template; the directory appears with all of them."""
    # That of a finished run that trained on stays until the new one is complete.
    with replacing_directory(run.adapter, last=(WEIGHTS_FILE, CONFIG_FILE)) as partial:
        adapter.save(partial)
        setup.tokenizer.save_pretrained(partial)
        save_settings(partial, setup.task.task_type, setup.labels, setup.encoded)


def _best_step(trainer: Trainer) -> int | None:
    is_best = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    return trainer.state.best_global_step if is_best else None


def _rows(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)


def _result(run: RunDirectory, facts: RunFacts) -> TrainResult:
    return TrainResult(
        run_dir=run.path,
        adapter_path=run.adapter,
        metrics=facts.metrics,
        train_loss=facts.train_loss,
        steps=facts.steps,
        wall_s=facts.wall_s,
        parameter_count=facts.parameter_count,
        injection=facts.injection,
        files=(
            run.adapter,
            run.report_file,
            run.loss_plot,
            run.metrics_file,
            run.tensorboard,
            run.recipe_file,
            run.environment_file,
        ),
    )
