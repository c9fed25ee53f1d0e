"""Compute the reference's log-probabilities once for a whole run, and keep them in its directory.

The reference does not change. Computed in a step, they would cost a forward pass of the model in
every epoch; computed before the first step they cost one in all, and eight bytes an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from datasets import Dataset, List, Value
from torch import Tensor, nn
from transformers import Trainer

from lorakit.data.like_length import longest_first, token_lengths
from lorakit.data.preferences import REFERENCE_KEY
from lorakit.data.progress import report_progress
from lorakit.distributed.processes import (
    all_gather_object,
    process_count,
    process_rank,
    run_on_main,
)
from lorakit.files.atomic import replacing_file
from lorakit.files.tensor_files import read_safetensors, write_safetensors
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.example_digests import dataset_digest
from lorakit.training.trainers.batching import step_examples

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_DIGEST = "examples"
"""Key of the file's metadata with the digest of the examples."""


class ReferenceLogProbsMixin(_Base):
    """Mixin for a trainer class whose step compares with a reference."""

    step: Any
    stream: Any = None

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train; know the reference's log-probabilities before the first step."""
        if self._visits_again():
            self._know_reference()
        return super()._inner_training_loop(*args, **kwargs)

    def _visits_again(self) -> bool:
        """Whether examples are seen more than once, by a reference that this process holds."""
        examples: Any = self.train_dataset
        if not self.step.objective.needs_reference or self.is_fsdp_enabled:
            return False
        if self.stream is not None:  # its examples are not known before they are trained on
            return False
        if not isinstance(examples, Dataset) or REFERENCE_KEY in examples.column_names:
            return False
        steps = self.args.max_steps
        if steps > 0:
            return steps * step_examples(self.args) > len(examples)
        return self.args.num_train_epochs > 1

    def _know_reference(self) -> None:
        """Add the log-probabilities to the training examples, read or computed."""
        examples: Any = self.train_dataset
        path = RunDirectory(Path(str(self.args.output_dir))).reference_file
        digest = dataset_digest(examples)
        known = run_on_main(lambda: _read(path, digest))
        if known is None:
            known = self._compute_reference(examples)
            run_on_main(lambda: _write(path, known, digest))
        self.train_dataset = examples.add_column(
            REFERENCE_KEY,
            known.tolist(),
            new_fingerprint=uuid4().hex,
            feature=List(Value("float32")),
        )

    def _compute_reference(self, examples: Any) -> Tensor:
        """Return the log-probabilities of all examples; each process computes a share."""
        order = longest_first(token_lengths(examples)).tolist()
        size = self.args.train_batch_size
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        collate: Any = self.counting_collator()  # type: ignore[attr-defined]  # of the trainer it is mixed into
        model: Any = self.model
        found: dict[int, list[float]] = {}
        what = "Computing the reference's log-probabilities"
        with _evaluating(model), self.accelerator.autocast():
            for number, numbers in enumerate(batches):
                report_progress(what, number * size, len(order))
                if number % process_count() != process_rank():
                    continue
                batch = self._prepare_inputs(collate([examples[number] for number in numbers]))
                values = self.step.reference(model, batch).float().tolist()
                found.update(zip(numbers, values, strict=True))
        report_progress(what, len(order), len(order))
        every = {n: v for part in all_gather_object(found) for n, v in part.items()}
        return torch.tensor([every[number] for number in range(len(examples))])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _read(path: Path, digest: str) -> Tensor | None:
    """Return the log-probabilities in a file, or None if it is of other examples."""
    try:
        file = read_safetensors(path)
    except (FileNotFoundError, ValueError):  # none yet, or damaged
        return None
    return file.tensors["log_probs"] if file.metadata.get(_DIGEST) == digest else None


def _write(path: Path, log_probs: Tensor, digest: str) -> None:
    with replacing_file(path) as partial:
        write_safetensors(partial, {"log_probs": log_probs}, {_DIGEST: digest})
