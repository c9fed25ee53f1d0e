"""FSDP2: check what a run asks for, and gather or shard the optimizer's state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.sharded import is_sharded, shard_like, whole
from lorakit.distributed.processes import process_count
from lorakit.errors import ConfigError, did_you_mean
from lorakit.layers import LowRankUpdate
from lorakit.recipes.training_section import OPTIMIZER_NAME

_KEYS = (
    "version",
    "auto_wrap_policy",
    "transformer_layer_cls_to_wrap",
    "min_num_params",
    "reshard_after_forward",
)
"""Keys of `fsdp_config` that are known to work with adapters."""

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"
_USE_FSDP = "ACCELERATE_USE_FSDP"
_RAM_EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def check_sharding(training: Mapping[str, Any]) -> None:
    """Check what the recipe and `accelerate launch` ask for, before a model is loaded.

    Raises:
        ConfigError: Lists what is not supported.
    """
    by_launcher = _is_set(_USE_FSDP)
    problems = []
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        problems.append("accelerate launch asks for DeepSpeed, expected --use_fsdp or neither")
    if training.get("fsdp_config") and not training.get("fsdp"):
        problems.append("training.fsdp_config is given without training.fsdp=true")
    if training.get("fsdp"):
        problems += _recipe_problems(training.get("fsdp_config") or {})
    elif by_launcher:
        problems += _launcher_problems()
    if (training.get("fsdp") or by_launcher) and training.get("optim") == OPTIMIZER_NAME:
        problems.append(
            f"training.optim is {OPTIMIZER_NAME}, whose file cannot hold sharded parameters"
        )
    if problems:
        raise ConfigError(
            f"Cannot shard the model: {'; '.join(problems)}. docs/scaling.md shows what works."
        )
    if by_launcher:
        # The other processes would have an empty base, and could not initialize an adapter on it.
        os.environ[_RAM_EFFICIENT_LOADING] = "false"


def _recipe_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if process_count() == 1:
        problems.append(
            "training.fsdp is true in one process, expected several (torchrun --nproc-per-node 2 "
            "-m lorakit train ...)"
        )
    for key in config:
        name = key.removeprefix("fsdp_")
        if name not in _KEYS:
            problems.append(
                f"training.fsdp_config has '{key}', expected one of {', '.join(_KEYS)}"
                f"{did_you_mean(name, _KEYS).rstrip('?')}"
            )
    version = config.get("version", config.get("fsdp_version", 2))
    if version != 2:
        problems.append(f"training.fsdp_config.version is {version}, expected 2")
    return problems


def _launcher_problems() -> list[str]:
    problems = []
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        problems.append(f"accelerate launch asks for FSDP {version}, expected --fsdp_version 2")
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        problems.append(
            "accelerate launch asks for FSDP's own activation checkpointing, expected "
            "training.activation_checkpointing=true"
        )
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        problems.append("accelerate launch asks to offload parameters, expected none offloaded")
    return problems


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "yes", "on")


def is_sharding_requested(training: Mapping[str, Any]) -> bool:
    """Whether the recipe or `accelerate launch` asks for FSDP."""
    return bool(training.get("fsdp")) or _is_set(_USE_FSDP)


@contextmanager
def restoring_launcher_environment() -> Iterator[None]:
    """Remove the variable that accelerate sets inside the block, unless the launcher had set it."""
    given = os.environ.get(_USE_FSDP)
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(_USE_FSDP, None)


def shard_on_cpus(accelerator: Any, plugin_options: Mapping[str, Any]) -> None:
    """Make accelerate shard on CPUs, where it silently leaves the model whole.

    Args:
        accelerator: A new accelerator whose processes run on CPUs.
        plugin_options: Options that transformers made from the recipe; empty to use the launcher's.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    if state.distributed_type != DistributedType.MULTI_CPU:
        raise ConfigError(
            f"The model cannot be sharded on {accelerator.device.type}: got processes of type "
            f"{state.distributed_type.value}, expected GPUs or CPUs. Leave training.fsdp out."
        )
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_options)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def require_shardable(model: Any) -> None:
    """Refuse a model that accelerate's FSDP2 cannot shard.

    FSDP2 supports tied input and output embeddings, but no other shared weights. Offset updates
    (measured from their initialization) and sliced updates are not supported either.

    Raises:
        ConfigError: Names the modules that share a weight, or the update.
    """
    for path, module in model.named_modules():
        if isinstance(module, LowRankUpdate) and module.sharding_obstacle is not None:
            raise ConfigError(
                f"This {type(model).__name__} cannot be sharded: {path} "
                f"{module.sharding_obstacle}, or leave training.fsdp out."
            )
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    holders: dict[int, list[tuple[str, int]]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((path, id(module)))
    for places in holders.values():
        if len(places) > 1 and any(module not in ends for _, module in places):
            raise ConfigError(
                f"This {type(model).__name__} cannot be sharded: "
                f"{', '.join(path for path, _ in places)} share a weight, expected only tied input "
                "and output embeddings. Leave training.fsdp out: each process then has the whole "
                "base."
            )


@contextmanager
def sharding_embeddings_once(model: Any) -> Iterator[None]:
    """Let accelerate shard the input embeddings by themselves alone inside the block.

    It does so after it has sharded the modules that a model does not split. BERT's include the one
    around the input embeddings, whose weight cannot be sharded twice.
    """
    embeddings, names = model.get_input_embeddings(), model._no_split_modules
    around = {type(m).__name__ for m in model.modules() if embeddings in m.children()}
    model._no_split_modules = [name for name in names or () if name not in around]
    try:
        yield
    finally:
        model._no_split_modules = names


def reshard(model: nn.Module) -> None:
    """Reshard gathered parameters, so that each process reads and writes its own shards next."""
    if process_count() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_optimizer_state(state: Any) -> Any:
    """Return an optimizer's state with full tensors on the CPU; every process must call this."""
    if isinstance(state, Tensor):
        return whole(state).detach().cpu()
    if isinstance(state, dict):
        return {key: gather_optimizer_state(value) for key, value in state.items()}
    return [gather_optimizer_state(value) for value in state] if isinstance(state, list) else state


def shard_optimizer_state(state: Mapping[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """Shard a full optimizer state like the parameters.

    Args:
        state: The result of `gather_optimizer_state` on the optimizer's state_dict.
        parameters: The optimizer's parameters, in the order of its groups.
    """
    shards = {
        index: {
            name: shard_like(value.to(parameters[index].device), parameters[index])
            if _has_sharded_shape(value, parameters[index])
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": shards}


def _has_sharded_shape(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and is_sharded(parameter) and value.shape == parameter.shape


def save_states(folder: str, optimizer_state: Any, scheduler: Any) -> None:
    """Write the full optimizer state and the scheduler state, under transformers' file names."""
    torch.save(optimizer_state, os.path.join(folder, _OPTIMIZER))
    torch.save(scheduler.state_dict(), os.path.join(folder, _SCHEDULER))


def load_states(folder: str, optimizer: Any, scheduler: Any) -> None:
    """Read what `save_states` or an unsharded run wrote; each process keeps its shard."""
    state = torch.load(os.path.join(folder, _OPTIMIZER), map_location="cpu", weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict(shard_optimizer_state(state, parameters))
    scheduler.load_state_dict(torch.load(os.path.join(folder, _SCHEDULER), weights_only=True))
