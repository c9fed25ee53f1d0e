"""Train an adapter from a recipe: data, base, adapter, trainer, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from lorakit.adapters import Adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.analysis.guessing import EVENT, guesses, reference_of
from lorakit.analysis.verdict import Verdict
from lorakit.distributed.processes import (
    init_process_groups,
    is_main_process,
    run_on_all,
    run_on_main,
    translating_process_failures,
)
from lorakit.files.atomic import replacing_directory
from lorakit.injection import Injection, ParameterCount, count_parameters
from lorakit.recipes.numerics import cpu_notes
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.arguments import batch_notes
from lorakit.training.callbacks import (
    EventHandler,
    RunRecorder,
    RunTensorBoard,
    early_stopping,
    ignore_event,
    silencing_writer_threads,
)
from lorakit.training.evaluation_metrics import PEAK_MEMORY, TOKENS_PER_S, best_step, final_metrics
from lorakit.training.frozen_part import frozen_part_once
from lorakit.training.model_card import write_card
from lorakit.training.open_run import OpenRun, open_run, recording_failure, require_free_output
from lorakit.training.out_of_room import explaining_disk_errors, explaining_memory_errors
from lorakit.training.peak_memory import PeakMemory
from lorakit.training.report import MemoryFacts, RunFacts, write_report
from lorakit.training.resuming import require_resumable, with_recorded_dtype
from lorakit.training.setup import Setup, prepare
from lorakit.training.shared_base import load_shared_base
from lorakit.training.starting_point import run_lineage
from lorakit.training.stop_request import StopRequest
from lorakit.training.tasks.base import save_settings
from lorakit.training.throughput import Throughput
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin, copy_trained_adapter
from lorakit.training.trainers.batching import padding_notes
from lorakit.training.trainers.data_initialization import with_current_ranks
from lorakit.training.trainers.numerical_checks import require_sound
from lorakit.training.trainers.stop_at_checkpoint import StopAtCheckpoint
from lorakit.training.trainers.unreached_layers import UnreachedLayers
from lorakit.training.validation_predictions import (
    answers_without_predictions,
    find_at_end,
    keep_predictions,
    prediction_files,
    write_predictions,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from lorakit.training.frozen_part import FrozenPart
    from lorakit.training.tasks import Task


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    run_dir: Path
    adapter_path: Path
    metrics: dict[str, float]
    """Evaluation of the saved adapter, with "eval_" prefixes; empty without validation."""
    train_loss: float
    """Mean training loss over all optimizer steps."""
    steps: int
    wall_s: float
    """Seconds of training, including those before a resume."""
    throughput: Throughput | None
    """None if there was no step."""
    parameter_count: ParameterCount
    injection: Injection
    verdict: Verdict | None
    """Whether the adapter is better than the base; None if the recipe does not ask."""
    files: tuple[Path, ...]
    """The written files that are worth opening."""


class Host(Protocol):
    """Gives a run its base, and may compute its passes together with those of other runs."""

    def load_base(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return the base of a run, with the bits that `task.load_base` gives it."""
        ...

    def training(
        self, setup: Setup, trainer: Trainer, frozen: FrozenPart
    ) -> AbstractContextManager[tuple[str, ...]]:
        """Return a context in which the run trains and evaluates; it yields notes."""
        ...


def train(
    recipe: Recipe | str | Path,
    *,
    resume: bool = False,
    shared_base: Path | None = None,
    host: Host | None = None,
    planned_bytes: int | None = None,
    on_event: EventHandler | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train an adapter as a recipe says, into the recipe's run directory.

    If a launcher has started several processes, each calls this with the same recipe. Only the main
    process writes the run and emits events.

    Args:
        recipe: A recipe, or the path of its YAML file.
        resume: Whether to continue the run in `recipe.output` from its newest complete checkpoint.
            The adapter has the same bits as if the run had never stopped.
        shared_base: Directory of the bases that all runs of this machine map, so that each is in
            memory once; None loads a copy for this run.
        host: What the run shares with other runs of this process; None if it is alone.
        planned_bytes: The planned peak memory, `MemoryPlan.measurable_bytes`; the report compares
            it with the measured one.
        on_event: Called as `on_event(name, payload)` with
            "dtype" {note} if the recipe has `dtype: auto`,
            "injected" {injection, parameter_count},
            "data" {train_examples (None if they are streamed), validation_examples, notes,
            task_type, labels (class names or None)},
            "run_opened" {path, resumed_from (checkpoint path or None), removed (the reason, by
            path, for each incomplete checkpoint or other file that was deleted), note},
            "notes" {notes} if there is something to know about the training,
            "step" {step, max_steps, epoch, logged, loss, learning_rate} after each step, and again
            with logged=True when new values are logged,
            "evaluation" {the same, metrics},
            "checkpoint" {step, path},
            "comparing" {examples} before the base is evaluated,
            "finished" {result}.
        stop: Set it to stop the run after the current optimizer step; with several processes, set
            it in at least one. It has no effect after the last step.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError: The recipe or what it names is
            wrong; nothing has been written.
        OutputExistsError: `output` has a run or other files, or the run to resume is finished or
            is being trained by another process.
        CheckpointError: The run to resume was made with another recipe or number of processes.
        TrainingError: The loss or the gradients are not numbers, all gradients are zero, or
            memory ran out. A run without a checkpoint is removed.
        DiskError: A disk is full or not writable; the files of the run are kept.
        StoppedError: `stop` was set; a checkpoint has been saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe = recipe.with_absolute_paths()  # a run is used from anywhere
    init_process_groups(recipe.training.get("use_cpu"), recipe.training.get("ddp_timeout"))
    emit = on_event if on_event is not None and is_main_process() else ignore_event
    with translating_process_failures(), ExitStack() as held:
        run_on_main(lambda: require_free_output(recipe.output, resume, held))
        check = _require_resumable if resume else None
        recorded = run_on_all(lambda: with_recorded_dtype(recipe, emit)) if resume else recipe
        with explaining_disk_errors(Path(recipe.output)):
            kept = RunDirectory(Path(recipe.output)).start_from if resume else None
            load_base = None if shared_base is None else partial(load_shared_base, shared_base)
            load_base = load_base if host is None else host.load_base
            setup = prepare(recorded, emit, check=check, load_base=load_base, kept_start=kept)
            run = open_run(setup, resume, emit, held, planned_bytes)
        stop = stop or StopRequest()
        with (
            stop.observing(),
            recording_failure(run),
            explaining_disk_errors(run.directory.path),
            explaining_memory_errors(setup.arguments.per_device_train_batch_size),
        ):
            return _fit(setup, run, emit, planned_bytes, stop, host)


def _require_resumable(recipe: Recipe) -> None:
    """Check in the main process that the run can be resumed; see `require_resumable`."""
    run_on_main(lambda: require_resumable(recipe))


def _fit(
    setup: Setup,
    run: OpenRun,
    emit: EventHandler,
    planned_bytes: int | None,
    stop: StopRequest,
    host: Host | None,
) -> TrainResult:
    """Train, save the adapter, and write the report."""
    peak = PeakMemory(on_gpu=setup.arguments.device.type == "cuda")
    directory = run.directory
    recorder = RunRecorder(directory, emit)
    tensorboard = RunTensorBoard(directory)
    writers = [recorder, tensorboard] if is_main_process() else []
    with _restoring_use_cache(setup.model), silencing_writer_threads(), closing(tensorboard):
        run_on_main(lambda: _write_guesses(setup, directory))
        unreached = UnreachedLayers()
        others = (*early_stopping(setup.recipe.training), unreached, StopAtCheckpoint(stop))
        trainer = cast(AdapterTrainerMixin, setup.build_trainer([*writers, *others]))
        recorder.measure = lambda: _measure(trainer, peak)
        notes = batch_notes(setup.arguments, is_sharded=trainer.is_fsdp_enabled)
        computing = cpu_notes(setup.arguments.device)
        padding: tuple[str, ...] = ()
        if setup.encoded.stream is None:
            multiple = getattr(trainer.data_collator, "pad_to_multiple_of", None)
            padding = padding_notes(setup.encoded.train, setup.arguments, multiple)
        keep_predictions(setup, trainer)
        kept = setup.recipe.frozen_part
        with ExitStack() as context:
            frozen = context.enter_context(frozen_part_once(trainer, kept, setup.encoded.train))
            hosted: tuple[str, ...] = ()
            if host is not None:
                hosted = context.enter_context(host.training(setup, trainer, frozen))
            trainer_notes = (*notes, *padding, *computing, *frozen.notes, *trainer.notes, *hosted)
            if trainer_notes:
                emit("notes", {"notes": trainer_notes})
            output = trainer.train(
                resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint)
            )
            left_out = None if trainer.stream is None else trainer.stream.left_out_note()
            late_notes = tuple(filter(None, [unreached.note(), left_out]))
            if late_notes:
                emit("notes", {"notes": late_notes})
            metrics = final_metrics(trainer)
            findings = find_at_end(setup, trainer, emit)
        answers = answers_without_predictions(setup, trainer, findings)
    wall_s = run_on_main(lambda: recorder.wall_s)
    adapter = copy_trained_adapter(setup.model)
    require_sound(adapter, output.global_step)
    predicted = findings.predicted
    chosen = {} if predicted is None else predicted.settings
    run_on_main(lambda: _save_trained_adapter(adapter, setup, directory, chosen))
    facts = RunFacts(
        recipe=setup.recipe,
        injection=with_current_ranks(setup.injection, setup.model),
        parameter_count=count_parameters(setup.model),
        train_examples=None if setup.encoded.stream is not None else len(setup.splits.train),
        validation_examples=_length(setup.splits.validation),
        notes=(*setup.splits.notes, *setup.encoded.notes, *trainer_notes, *late_notes),
        metrics=metrics,
        train_loss=output.training_loss,
        steps=output.global_step,
        planned_steps=trainer.state.max_steps,
        best_step=best_step(trainer),
        reference=reference_of(directory),
        wall_s=wall_s,
        throughput=trainer.throughput,
        memory=MemoryFacts(planned_bytes, peak.read(), peak.meaning),
        predictions=run_on_main(lambda: write_predictions(setup, predicted, directory)),
        answers=answers,
        judgement=findings.judgement,
    )
    run_on_main(lambda: write_card(directory, facts))
    run_on_main(lambda: write_report(directory, facts))
    result = _result(directory, facts)
    emit("finished", {"result": result})
    return result


def _measure(trainer: AdapterTrainerMixin, peak: PeakMemory) -> dict[str, float]:
    """Return the speed and the peak memory, which are logged beside the loss."""
    values = {TOKENS_PER_S: trainer.meter.recent_tokens_per_s(), PEAK_MEMORY: peak.read()}
    return {key: value for key, value in values.items() if value is not None}


def _write_guesses(setup: Setup, run: RunDirectory) -> None:
    """Write the metrics of guessing on the validation examples, once per run."""
    metrics = guesses(setup.task.task_type, setup.encoded.validation)
    if metrics and not any(entry.get("event") == EVENT for entry in run.metrics()):
        run.append_metrics({"event": EVENT, "step": 0, **metrics})


@contextmanager
def _restoring_use_cache(model: Any) -> Iterator[None]:
    """Restore the model's use_cache setting, which training changes, after the block."""
    before = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            model.config.use_cache = before


def _save_trained_adapter(
    adapter: Adapter, setup: Setup, run: RunDirectory, chosen: Mapping[str, Any]
) -> None:
    """Write adapter, tokenizer and chat template; the directory appears atomically.

    `chosen` has the settings of inference that were chosen on the validation examples.
    """
    # When a finished run is continued, its old adapter stays until the new one is complete.
    with replacing_directory(run.adapter, last=(WEIGHTS_FILE, CONFIG_FILE)) as partial:
        adapter.save(partial)
        setup.tokenizer.save_pretrained(partial)
        lineage = run_lineage.read_lineage(run.environment_file)
        save_settings(partial, setup.task.task_type, setup.labels, setup.encoded, lineage, chosen)


def _length(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)


def _result(run: RunDirectory, facts: RunFacts) -> TrainResult:
    return TrainResult(
        run_dir=run.path,
        adapter_path=run.adapter,
        metrics=facts.metrics,
        train_loss=facts.train_loss,
        steps=facts.steps,
        wall_s=facts.wall_s,
        throughput=facts.throughput,
        parameter_count=facts.parameter_count,
        injection=facts.injection,
        verdict=None if facts.judgement is None else facts.judgement.verdict,
        files=(
            run.adapter,
            run.report_file,
            *([run.verdict_file] if run.verdict_file.exists() else []),
            run.loss_plot,
            *prediction_files(run, facts.predictions),
            run.metrics_file,
            run.tensorboard,
            run.recipe_file,
            run.environment_file,
        ),
    )
