"""`plan`: predict the memory of a run on fake tensors, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.adapters.on_model.save_and_load import view_of
from lorakit.errors import ConfigError
from lorakit.files.disks import size_text
from lorakit.files.tensor_files import safetensors_bytes
from lorakit.injection import count_parameters
from lorakit.libraries.machine_memory import device_memory, process_bytes
from lorakit.planning.fake_run import FakeRun, Method, build_fake_run
from lorakit.planning.memory_size import parse_memory
from lorakit.planning.several_processes import memory_per_process
from lorakit.planning.sources import Sources
from lorakit.planning.step_memory import StepMemory
from lorakit.recipes.recipe import Recipe
from lorakit.training.preview import optimizer_steps

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

PURPOSES = (
    *("base weights", "trained weights", "gradients", "optimizer state", "saved activations"),
    *("logits", "temporaries", "communication", "batch"),
)
"""What memory is used for, in the order in which it is shown."""


@dataclass(frozen=True)
class MemoryPlan(StepMemory):
    """Memory of a run; all sizes are those of one process, in bytes."""

    method: Method
    device: str
    processes: int
    trainable: int
    """Trained parameters."""
    total: int
    """All parameters, including the trained ones."""
    process_bytes: int
    """Memory of the process without its tensors: Python and the libraries."""
    adapter_file_bytes: int
    """Size of adapter_model.safetensors, or of the whole checkpoint if everything is trained."""
    memory_bytes: int | None
    """Memory of the device; None if unknown."""
    batch_rows: int
    batch_tokens: int
    """Tokens of a row of the planned batch, without targets."""
    updates: int | None
    """Optimizer steps of the whole run; None if the number of examples is unknown."""
    batches: int | None
    """Micro-batches of a process, each with one forward and one backward pass."""
    epochs: float | None
    """Passes over the training examples."""
    tokens: int | None
    """Tokens that all processes train on in the whole run, without padding."""
    notes: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Memory of the process with its tensors."""
        return self.peak_bytes + self.process_bytes

    @property
    def fits(self) -> bool | None:
        """Whether tensors and process fit into the memory; None if unknown."""
        return None if self.memory_bytes is None else self.needed_bytes <= self.memory_bytes

    @property
    def verdict(self) -> str:
        """A sentence on whether the run fits."""
        needed = size_text(self.needed_bytes)
        if self.memory_bytes is None:
            return f"It needs {needed}; the memory of the device is not known here (--memory)."
        there = size_text(self.memory_bytes)
        if self.fits:
            return f"It fits: {needed} of {there}."
        return f"It does not fit: it needs {needed} of {there}."

    @property
    def by_purpose(self) -> dict[str, int]:
        """Bytes at the peak by purpose, in the order of `PURPOSES`, without those of none."""
        return {purpose: size for purpose in PURPOSES if (size := self.at_peak.get(purpose, 0))}

    @property
    def measurable_bytes(self) -> int:
        """Bytes comparable with the report of a run.

        On a CPU, the memory of the whole process; on a GPU, that of its tensors.
        """
        return self.needed_bytes if self.device == "cpu" else self.peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**asdict(self), "needed_bytes": self.needed_bytes, "fits": self.fits}


def bytes_together(plans: Sequence[MemoryPlan]) -> int:
    """Return the memory of runs that train together: one process and base, the rest for each.

    Args:
        plans: Plans of the runs alone.
    """
    base = max(plan.at_peak.get("base weights", 0) for plan in plans)
    others = sum(plan.peak_bytes - plan.at_peak.get("base weights", 0) for plan in plans)
    return max(plan.process_bytes for plan in plans) + base + others


def plan(
    recipe: Recipe | str | Path,
    *,
    method: Method = "adapter",
    device: str | None = None,
    memory: int | str | None = None,
    processes: int = 1,
    download: bool = False,
    sources: Sources | None = None,
) -> MemoryPlan:
    """Predict the memory of a run without loading weights.

    Model, adapter, optimizer and batch of the recipe are built on fake tensors, which have shapes
    but no values, and the trainer of the task runs a step on them while every storage is counted.
    The batch has the longest examples if data and tokenizer are local, otherwise examples of
    `data.max_length` tokens.

    Args:
        recipe: A recipe, or the path of its YAML file.
        method: "adapter" trains as the recipe says; "full" trains every parameter, without an
            adapter.
        device: "cpu" or "cuda"; None takes the accelerator if there is one.
        memory: Memory of the device, in bytes or such as "16GB"; None detects it.
        processes: Number of processes that train together, each on its own device.
        download: Whether data and tokenizer may be downloaded from the hub; the configuration
            always may.
        sources: Result of `find_sources` for a recipe of the same model and data; None reads it.

    Raises:
        ConfigError, MissingFileError, DataError, TargetError, QuantizationError: Errors of
            training that can be detected without weights.
        PlanError: The step depends on the values of the weights.
    """
    available = parse_memory(memory) if isinstance(memory, str) else memory
    if processes < 1:
        raise ConfigError(f"Cannot plan for {processes} processes: expected 1 or more.")
    run = build_fake_run(recipe, method=method, device=device, download=download, sources=sources)
    return plan_of(run, available, processes)


def plan_of(run: FakeRun, memory_bytes: int | None = None, processes: int = 1) -> MemoryPlan:
    """Run a step on fake tensors, and return the memory of the run.

    Args:
        run: Result of `build_fake_run`.
        memory_bytes: Memory of the device; None detects it.
        processes: Number of processes that train together.

    Raises:
        PlanError: The step depends on the values of the weights.
    """
    model, examples, arguments = run.model, run.examples, run.trainer.args
    shards = bool(run.recipe.training.get("fsdp"))
    step = memory_per_process(run.step(), model, processes, shards)
    parameters = count_parameters(model)
    if run.method == "full":
        file_bytes = safetensors_bytes(model.state_dict(), {"format": "pt"})
    else:
        file_bytes = view_of(model, "default").weights_file_bytes()
    updates = epochs = tokens = None
    if examples.train_examples is not None:
        updates = optimizer_steps(arguments, -(-examples.train_examples // processes))
        epochs = _epochs(arguments, updates * processes, examples.train_examples)
        tokens = round(epochs * examples.mean_tokens * examples.train_examples)
    first = run.batch["input_ids"].flatten(0, -2)
    return MemoryPlan(
        **vars(step),
        method=run.method,
        device=str(run.device),
        processes=processes,
        trainable=parameters.trainable,
        total=parameters.total,
        process_bytes=process_bytes(),
        adapter_file_bytes=file_bytes,
        memory_bytes=memory_bytes or device_memory(run.device),
        batch_rows=first.shape[0],
        batch_tokens=first.shape[1],
        updates=updates,
        batches=None if updates is None else updates * arguments.gradient_accumulation_steps,
        epochs=epochs,
        tokens=tokens,
        notes=(
            examples.note,
            *(() if run.dtype_note is None else (run.dtype_note,)),
            *_processes_note(shards, processes),
            *_imitation_note(run.device, run.tensors_on),
        ),
    )


def _processes_note(shards: bool, processes: int) -> tuple[str, ...]:
    if shards and processes == 1:
        return ("training.fsdp shards the model over several processes: give --processes N.",)
    if processes == 1:
        return ()
    how = "The model is sharded (FSDP2)" if shards else "Each process has the whole model"
    return (f"{how}; the memory that {processes} processes add is calculated, not run.",)


def _imitation_note(device: torch.device, tensors_on: torch.device) -> tuple[str, ...]:
    if tensors_on == device:
        return ()
    return (f"torch does not support {device.type} here: activations are planned as on a CPU.",)


def _epochs(arguments: TrainingArguments, updates: int, train_examples: int) -> float:
    if arguments.max_steps > 0:
        step_rows = arguments.train_batch_size * arguments.gradient_accumulation_steps
        return updates * step_rows / train_examples
    return float(arguments.num_train_epochs)
