"""The blocks of a model: those below the first adapted one, its upper ones, what blocks return."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from lorakit.errors import ConfigError
from lorakit.recipes.numerics import numerics_facts
from lorakit.recipes.search_sections import Depth

SHARES: dict[Depth, int] = {"all": 1, "upper half": 2, "upper quarter": 4}
"""The share of the layers that is adapted, by its inverse."""


@dataclass(frozen=True)
class FrozenBlocks:
    """Blocks whose output depends on the example and the base alone."""

    frozen: tuple[nn.Module, ...]
    """The blocks below the first adapted one, in order."""
    path: str
    """Path of the list of all blocks in the model, such as "model.layers"."""
    total: int
    """Number of all blocks."""

    @property
    def depth(self) -> int:
        """Number of frozen blocks."""
        return len(self.frozen)


def find_frozen_blocks(model: nn.Module) -> FrozenBlocks | None:
    """Return the blocks below the first one with trained parameters, None if there are none.

    A model must have one list of blocks; an encoder with a decoder has two. What is registered
    before the list, such as embeddings, must be frozen as well.
    """
    lists = block_lists(model)
    if len(lists) != 1:
        return None
    path, blocks = lists[0]
    is_trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    depth = is_trained.index(True) if any(is_trained) else len(blocks)
    # The last block hands its output to modules after the list, and may be of another kind.
    found = FrozenBlocks(tuple(blocks)[: min(depth, len(blocks) - 1)], path, len(blocks))
    parameters = dict(model.named_parameters())
    if any(parameters[name].requires_grad for name in _below(parameters, found)):
        return None
    return found if found.depth else None


def has_dropout(model: nn.Module, blocks: FrozenBlocks | None = None) -> bool:
    """Whether something besides adapters drops in a model while it trains.

    Attention drops without a module, as the model's configuration says.

    Args:
        model: The model.
        blocks: Asks about these blocks, and what is before them, alone.
    """
    config = getattr(model, "config", None)
    rates = {} if config is None else config.to_dict()
    modules = model.modules() if blocks is None else modules_below(model, blocks)
    return any(
        "drop" in name and isinstance(rate, float) and rate > 0 for name, rate in rates.items()
    ) or any(isinstance(module, _DropoutNd) and module.p > 0 for module in modules)


def layers_at(depth: Depth, layers: int) -> tuple[int, ...]:
    """Return the indices of the adapted layers.

    >>> layers_at("upper quarter", 12)
    (9, 10, 11)
    >>> layers_at("upper half", 1)
    (0,)
    """
    return tuple(range(layers - max(1, layers // SHARES[depth]), layers))


def count_layers(model: nn.Module) -> int:
    """Return the number of layers of a model with one list of layers.

    Raises:
        ConfigError: The model has none or several, such as an encoder and a decoder.
    """
    lists = block_lists(model)
    if len(lists) != 1:
        paths = ", ".join(path for path, _ in lists) or "none"
        raise ConfigError(
            f"The upper layers of this {type(model).__name__} are not known: got lists of layers "
            f"{paths}, expected one. Leave study.layers out."
        )
    return len(lists[0][1])


@contextmanager
def keeping_in_evaluation(model: nn.Module, blocks: FrozenBlocks) -> Iterator[None]:
    """Keep the frozen blocks, and dropout before them, in evaluation mode as the model runs."""
    before = [m for m in modules_below(model, blocks) if isinstance(m, _DropoutNd)]

    def to_evaluation(*_: Any) -> None:
        for module in (*blocks.frozen, *before):
            if module.training:
                module.eval()

    handle = model.register_forward_pre_hook(to_evaluation)
    try:
        yield
    finally:
        handle.remove()
        for module in (*blocks.frozen, *before):
            module.train(model.training)


def modules_below(model: nn.Module, blocks: FrozenBlocks) -> list[nn.Module]:
    """Return the modules registered before the first adapted block of a model, or of its copy."""
    modules = dict(model.named_modules())
    return [modules[name] for name in _below(modules, blocks)]


@contextmanager
def replacing_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules compute by other functions inside the block."""
    replaced = [(module, vars(module).get("forward"), forward) for module, forward in forwards]
    for module, _, forward in replaced:
        module.forward = forward
    try:
        yield
    finally:
        for module, was_set, _ in replaced:
            del module.forward
            if was_set is not None:  # as by accelerate, which moves weights between devices
                module.forward = was_set


@contextmanager
def watching_output(module: nn.Module) -> Iterator[list[Any]]:
    """Yield the list of what a module returns inside the block."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def identity_of(model: nn.Module, blocks: FrozenBlocks) -> str:
    """Return a hash of all that determines the output of the frozen blocks for an example.

    These are their weights and those before them, the configuration, and what computes.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = getattr(model, "config", None)
    described = type(model).__name__ if config is None else config.to_json_string()
    digest.update(repr((described, blocks.path, blocks.depth, numerics_facts())).encode())
    weights = model.state_dict()
    for name in _below(weights, blocks):
        tensor = weights[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
            digest.update(flat.numpy().data)
    return digest.hexdigest()


def _below(names: Iterable[str], blocks: FrozenBlocks) -> Iterator[str]:
    """Yield the names that are registered before the first adapted block, in their order."""
    prefix, is_past = f"{blocks.path}.", False
    for name in names:
        if name.startswith(prefix):
            is_past = is_past or int(name.removeprefix(prefix).split(".")[0]) >= blocks.depth
        if is_past:
            return
        yield name


def block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the lists of at least two modules of one class that lie in no other such list."""
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        is_inner = any(path.startswith(f"{outer}.") for outer, _ in found)
        if not is_inner and len({type(block) for block in module}) == 1:
            found.append((path, module))
    return found


@dataclass(frozen=True)
class BlockOutput:
    """The form of what every block of a model returns.

    Most blocks return hidden states. Those of BLOOM, Falcon, GPT-J or DeBERTa return a tuple of
    hidden states and attention weights, which nobody reads in training.
    """

    others: int | None = None
    """Number of values after the hidden states in a tuple; None for hidden states alone."""

    @classmethod
    def of(cls, output: object) -> BlockOutput | None:
        """Return the form of an output, None if it does not begin with hidden states."""
        if isinstance(output, Tensor):
            return cls()
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return cls(len(cast(tuple[object, ...], output)) - 1)
        return None

    def hidden_states(self, output: Any) -> Tensor:
        """Return the hidden states of an output of this form."""
        return output if self.others is None else output[0]

    def build(self, hidden_states: Tensor) -> Any:
        """Return an output of this form; the other values are None."""
        if self.others is None:
            return hidden_states
        return (hidden_states, *[None] * self.others)
