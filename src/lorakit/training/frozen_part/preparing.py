"""Decide whether a run keeps the output of its frozen blocks, and try that it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.files.user_cache import user_cache
from lorakit.recipes.frozen_part_section import FrozenPartConfig
from lorakit.training.frozen_part.blocks import (
    BlockOutput,
    FrozenBlocks,
    find_frozen_blocks,
    has_dropout,
    identity_of,
    keeping_in_evaluation,
    watching_output,
)
from lorakit.training.frozen_part.cached_forward import CachedForward, caching_frozen_part
from lorakit.training.frozen_part.store import HiddenStates

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

_TOLERANCE = 1e-5
_TRIED_EXAMPLES = 2
_PIECE_TOKENS = 64
"""Examples that begin alike share kept hidden states in pieces of so many tokens."""


@dataclass(frozen=True)
class FrozenPart:
    """What a run does with the blocks below its first adapted one."""

    notes: tuple[str, ...] = ()
    """What is done, or why it is not; one sentence each."""
    blocks: FrozenBlocks | None = None
    """These blocks; None if there are none."""
    is_in_evaluation: bool = False
    """Whether dropout of the base is off in them while the run trains."""
    forward: CachedForward | None = None
    """The state of the model's calls; None if nothing is kept."""


@contextmanager
def frozen_part_once(
    trainer: Any, config: FrozenPartConfig, examples: Dataset
) -> Iterator[FrozenPart]:
    """Compute the blocks below the first adapted one once for each example, in this block.

    Without such blocks, or where it cannot be done, the model runs unchanged.

    Args:
        trainer: A trainer with a `step`, of a model that has its adapter.
        config: The recipe's `frozen_part`.
        examples: The training examples; on some, losses with and without kept outputs are compared.

    Yields: What is done.
    """
    model, arguments = trainer.model, trainer.args
    blocks = find_frozen_blocks(model)
    if blocks is None:
        yield FrozenPart()
        return
    with ExitStack() as held:
        notes: list[str] = []
        drops = has_dropout(model, blocks)
        if drops and not config.dropout:
            held.enter_context(keeping_in_evaluation(model, blocks))
            notes.append(
                f"Dropout is off in the {blocks.depth} of {blocks.total} blocks below the first "
                "adapted one and before them; frozen_part.dropout=true leaves it on."
            )
        forward, reason = None, _reason_against(model, arguments, config, drops)
        if not reason and trainer.step.compares_answers:
            reason = "an objective puts two answers into a row"
        if not reason:
            some = [examples[k] for k in range(min(len(examples), _TRIED_EXAMPLES))]
            batch = trainer.counting_collator()(some)
            forward, reason = _keep(held, trainer, config, blocks, batch, len(some))
        if forward is not None:
            notes.append(
                f"The {blocks.depth} of {blocks.total} blocks below the first adapted one are "
                f"computed once for each example and kept in {_directory(config)}, at most "
                f"{config.cache_bytes / 1e9:.3g} GB (frozen_part.cache_bytes)."
            )
        elif config.cache_bytes:
            notes.append(
                f"The {blocks.depth} frozen blocks below the first adapted one are computed in "
                f"every step: {reason}."
            )
        yield FrozenPart(tuple(notes), blocks, drops and not config.dropout, forward)


def _keep(
    held: ExitStack,
    trainer: Any,
    config: FrozenPartConfig,
    blocks: FrozenBlocks,
    batch: Mapping[str, Any],
    tried_examples: int,
) -> tuple[CachedForward | None, str]:
    """Begin to keep outputs; return the state of the model's calls, or None and the reason."""
    model = trainer.model
    precision = "-".join(name for name in ("bf16", "fp16") if getattr(trainer.args, name))
    name = "-".join(filter(None, (identity_of(model, blocks), precision)))
    with watching_output(blocks.frozen[-1]) as outputs:
        expected = _loss(trainer, batch)
    forms = {BlockOutput.of(output) for output in outputs}
    form = forms.pop() if len(forms) == 1 else None
    if form is None:
        return None, f"the blocks of this {type(model).__name__} do not return hidden states first"
    if any(form.hidden_states(output).requires_grad for output in outputs):
        return None, "what is trained outside the blocks changes their output"
    # What is tried is not kept: a run would read what another batch than its own has computed.
    with caching_frozen_part(model, blocks, _InMemory(), form) as forward:
        try:
            losses = [_loss(trainer, batch) for _ in ("computed", "kept")]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # such as blocks that read what others have left somewhere
            problem = f"{type(error).__name__}: {error}"
            return None, f"this {type(model).__name__} needs them to run ({problem})"
    if forward.examples != len(losses) * tried_examples:
        return None, "a batch does not have one row of token ids for each example"
    if not all(math.isclose(loss, expected, rel_tol=_TOLERANCE) for loss in losses):
        return None, f"this {type(model).__name__} gives another loss with kept outputs"
    store = HiddenStates(_directory(config), name, config.cache_bytes)
    held.callback(store.close)
    if store.problem is not None:
        return None, f"they cannot be kept in {_directory(config)} ({store.problem})"
    before = form.hidden_states(outputs[0])
    if before[:1].nbytes > config.cache_bytes:
        return None, f"frozen_part.cache_bytes={config.cache_bytes} has no room for one example"
    pieces = _PIECE_TOKENS if _is_causal(trainer, blocks, batch, form, before) else None
    keeping = caching_frozen_part(model, blocks, store, form, piece_tokens=pieces)
    return held.enter_context(keeping), ""


def _is_causal(
    trainer: Any,
    blocks: FrozenBlocks,
    batch: Mapping[str, Any],
    form: BlockOutput,
    before: Tensor,
) -> bool:
    """Whether hidden states do not depend on later tokens, by changing the last one of a batch.

    Args:
        trainer: The trainer.
        blocks: The frozen blocks.
        batch: A batch.
        form: The form of their output.
        before: Their hidden states for the batch, (batch, tokens, hidden).
    """
    ids: Tensor = batch["input_ids"]
    if ids.shape[1] < 2:
        return False
    last = (ids[:, -1:] + 1) % (int(ids.max()) + 1)
    changed = {**batch, "input_ids": torch.cat([ids[:, :-1], last], 1)}
    with watching_output(blocks.frozen[-1]) as outputs:
        _loss(trainer, changed)
    return torch.equal(form.hidden_states(outputs[0])[:, :-1], before[:, :-1])


class _InMemory:
    """Keeps hidden states in memory."""

    def __init__(self) -> None:
        self._states: dict[bytes, Tensor] = {}

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        return self._states

    def put(self, states: Mapping[bytes, Tensor]) -> None:
        self._states.update(states)


def _reason_against(
    model: nn.Module, arguments: TrainingArguments, config: FrozenPartConfig, drops: bool
) -> str:
    """Return why outputs cannot be kept, half a sentence, or ""."""
    model_config: Any = getattr(model, "config", None)
    reasons = {
        "frozen_part.cache_bytes is 0": not config.cache_bytes,
        "their dropout is on (frozen_part.dropout)": drops and config.dropout,
        "torch_compile needs the same code in every step": bool(arguments.torch_compile),
        "sharded blocks run on all processes together": bool(arguments.fsdp),
        "gradient checkpointing runs blocks again": bool(arguments.gradient_checkpointing),
        "neftune_noise_alpha changes their input in every step": bool(
            arguments.neftune_noise_alpha
        ),
        "evaluation converts the model to another dtype": bool(
            arguments.bf16_full_eval or arguments.fp16_full_eval
        ),
        "the model's loss reads the routers of all blocks": bool(
            getattr(model_config, "output_router_logits", False)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _loss(trainer: Any, batch: Mapping[str, Any]) -> float:
    """Return the loss of a batch in evaluation, computed with its graph as in training."""
    model: nn.Module = trainer.model
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(), trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs(dict(batch))
            return trainer.step.share(model, inputs).loss.item()
    finally:
        model.train(was_training)


def _directory(config: FrozenPartConfig) -> Path:
    return user_cache("frozen-part", config.cache_directory)
