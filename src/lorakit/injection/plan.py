"""What adding an adapter would do to a model, worked out before anything is touched."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.errors import ShapeError, TargetError
from lorakit.injection.heads import TASKS_WITH_HEADS, output_layers, task_heads
from lorakit.injection.parts import by_groups, check_parts
from lorakit.injection.state import base_modules
from lorakit.injection.targets import ALL_LINEAR, match_targets, name_matches, no_match_message
from lorakit.injection.uncalled import require_called
from lorakit.layers import (
    AdaptedLayer,
    KernelShape,
    LoraConv1D,
    LoraConv1d,
    LoraConv2d,
    LoraConv3d,
    LoraEmbedding,
    LoraLinear,
    ReplacedModule,
    plain_class_of,
)
from lorakit.layers.bitsandbytes_storage import bits_of, quantized_weight

_ADAPTED_CLASSES: dict[type[nn.Module], type[AdaptedLayer]] = {
    nn.Linear: LoraLinear,
    Conv1D: LoraConv1D,
    nn.Embedding: LoraEmbedding,
    nn.Conv1d: LoraConv1d,
    nn.Conv2d: LoraConv2d,
    nn.Conv3d: LoraConv3d,
}


def adapted_classes() -> dict[type[nn.Module], type[AdaptedLayer]]:
    """Return which class adapts layers of which.

    Those of bitsandbytes are among them once it has been imported: before, there are no such
    layers, and importing it takes time.
    """
    return _with_quantized() if "bitsandbytes" in sys.modules else _ADAPTED_CLASSES


@cache
def _with_quantized() -> dict[type[nn.Module], type[AdaptedLayer]]:
    from lorakit.layers import quantized

    return {**_ADAPTED_CLASSES, **quantized.ADAPTED_CLASSES}


class AdapterTensors(Protocol):
    """An adapter as a value: what `add_adapter` needs of `lorakit.Adapter`."""

    @property
    def config(self) -> LoraConfig:
        """The configuration."""
        ...

    @property
    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """(lora_A, lora_B) by module path."""
        ...

    @property
    def magnitudes(self) -> Mapping[str, Tensor]:
        """Magnitudes (DoRA) by module path."""
        ...

    @property
    def replaced(self) -> Mapping[str, Tensor]:
        """Tensors that stand in for the base's own, by their full name in the base."""
        ...

    @property
    def convolutions(self) -> Mapping[str, KernelShape]:
        """Channels, kernel and groups of adapted convolutions by module path."""
        ...

    @property
    def base_weights(self) -> Mapping[str, Tensor]:
        """Weights of the base that the adapter's file repeats, by module path."""
        ...


@dataclass(frozen=True)
class Site:
    """A layer to adapt."""

    path: str
    module: nn.Module
    adapted_class: type[AdaptedLayer]
    r: int
    scaling: float
    parts: tuple[bool, ...] | None = None
    """Which parts of a fused matrix are adapted, each by itself; None for the whole."""


@dataclass
class InjectionPlan:
    """Everything an adapter will add to a model."""

    config: LoraConfig
    sites: list[Site] = field(default_factory=list)
    heads: dict[str, nn.Module] = field(default_factory=dict)
    """Modules trained in full, by path."""
    site_biases: set[str] = field(default_factory=set)
    """Paths of the adapted layers whose bias is trained."""
    other_biases: dict[str, nn.Module] = field(default_factory=dict)
    """Modules that are not adapted but whose bias is trained, by path."""
    skipped: list[tuple[str, str]] = field(default_factory=list)


def adapted_class_of(module: nn.Module) -> type[AdaptedLayer] | None:
    """Return the class that adapts this module, or None where there is none."""
    if isinstance(module, AdaptedLayer):
        return type(module)
    return None if obstacle(module) else adapted_classes().get(plain_class_of(module))


def obstacle(module: nn.Module) -> str | None:
    """Return why a layer that looks adaptable is not, or None."""
    known = adapted_classes()
    if isinstance(module, AdaptedLayer) or not isinstance(module, tuple(known)):
        return None
    kind = plain_class_of(module)
    if kind not in known:
        return f"{kind.__name__} is a subclass with a forward of its own"
    if bits_of(module) is not None and quantized_weight(module) is None:
        return f"this {kind.__name__} is not quantised yet; move the model to its device first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rewrites the base's weight"
    return None


def plan_from_config(model: nn.Module, config: LoraConfig) -> InjectionPlan:
    """Work out which modules a configuration adapts and trains.

    Raises:
        TargetError: A pattern selects nothing or something that cannot be adapted; lists all.
        ShapeError: A rank is larger than its layer.
    """
    modules = dict(base_modules(model))
    plan = InjectionPlan(config)
    problems: list[str] = []
    plan.heads = _heads(model, modules, config, problems)

    inside_heads = tuple(f"{path}." for path in plan.heads)
    free = {
        path: module
        for path, module in modules.items()
        if path and path not in plan.heads and not path.startswith(inside_heads)
    }
    adaptable = {p: c for p, m in free.items() if (c := adapted_class_of(m)) is not None}
    outputs = output_layers(model)
    default = [
        path
        for path, kind in adaptable.items()
        if kind.is_linear and id(modules[path]) not in outputs
    ]
    selected, target_problems = match_targets(config, list(adaptable), default)
    problems += _blocked(config, free, plan) + target_problems
    if problems:
        raise TargetError("\n".join(problems))

    plan.sites = [
        Site(
            path,
            modules[path],
            adaptable[path],
            config.rank_for(path),
            config.scaling_for(path),
            config.parts_for(path),
        )
        for path in selected
    ]
    check_parts(config, plan.sites)
    plan.sites = [by_groups(site, config) for site in plan.sites]
    _check_ranks(plan.sites)
    _check_frozen(config, plan.sites)
    _check_even(config, plan.sites)
    _note_skipped(config, modules, plan, outputs)
    plan_biases(plan, free)
    require_called(modules, plan.sites)
    return plan


def _heads(
    model: nn.Module, modules: dict[str, nn.Module], config: LoraConfig, problems: list[str]
) -> dict[str, nn.Module]:
    """Return the modules to train in full: those named, and the heads of the task."""
    heads: dict[str, nn.Module] = {}
    for name in config.modules_to_save:
        found = {p: m for p, m in modules.items() if p and name_matches([name], p)}
        if not found:
            problems.append(no_match_message("modules_to_save", [name], [p for p in modules if p]))
        heads.update(found)
        problems += [
            f"modules_to_save={[name]!r} names {path}, a {type(module).__name__} with no forward "
            "of its own. Name the modules inside it."
            for path, module in found.items()
            if isinstance(module, (nn.ModuleList, nn.ModuleDict))
        ]
    if config.task_type in TASKS_WITH_HEADS:
        automatic = task_heads(model)
        if not automatic and not heads:
            problems.append(
                f"task_type={config.task_type} trains the model's head, but "
                f"{type(model).__name__} has none beside its backbone. Load the model with a "
                "head, or name the head in modules_to_save."
            )
        heads.update({name: modules[name] for name in automatic})
    problems += quantized_head_problems(heads)
    outer = tuple(f"{path}." for path in heads)
    return {path: module for path, module in heads.items() if not path.startswith(outer)}


def quantized_head_problems(heads: Mapping[str, nn.Module]) -> list[str]:
    """Return a problem for each module that is to be trained in full but is quantised."""
    problems = []
    for path, module in heads.items():
        inside = [f"{path}.{p}" if p else path for p, m in base_modules(module) if bits_of(m)]
        if inside:
            problems.append(
                f"Cannot train {path} in full: {inside[0]} is quantised, expected a dense weight. "
                f"Load the base with {path} among the layers that stay in 16 bits "
                "(quantization.skip_modules)."
            )
    return problems


def _blocked(config: LoraConfig, free: dict[str, nn.Module], plan: InjectionPlan) -> list[str]:
    """Return a problem for each named module that looks like a layer but cannot be adapted."""
    targets = config.target_modules
    explicit = targets is not None and targets != ALL_LINEAR
    problems = []
    for path, module in free.items():
        reason = obstacle(module)
        if reason is None:
            continue
        excluded = config.exclude_modules and name_matches(config.exclude_modules, path)
        if explicit and targets and name_matches(targets, path) and not excluded:
            problems.append(
                f"Cannot adapt {path}: {reason}. Leave it out with exclude_modules=[{path!r}]."
            )
        elif not explicit and isinstance(module, (nn.Linear, Conv1D)):
            plan.skipped.append((path, reason))
    return problems


def _check_ranks(sites: list[Site]) -> None:
    too_large = []
    for site in sites:
        in_features, out_features = site.adapted_class.factor_sizes(site.module)
        out_features //= len(site.parts) if site.parts else 1
        if site.r > min(in_features, out_features):
            too_large.append(f"{site.path} (in={in_features}, out={out_features}, r={site.r})")
    if too_large:
        more = f" and {len(too_large) - 5} more" if len(too_large) > 5 else ""
        raise ShapeError(
            f"The rank is larger than the layer in {', '.join(too_large[:5])}{more}; expected r "
            "up to min(in, out). Lower r, give these layers a rank_pattern, or exclude them."
        )


def _check_frozen(config: LoraConfig, sites: list[Site]) -> None:
    """Refuse to freeze a lora_A that starts at zero: the update would stay zero."""
    zero = [site.path for site in sites if site.adapted_class.zero_factor == "A"]
    if config.freeze_lora_a and zero:
        raise TargetError(
            f"Cannot freeze lora_A of {zero[0]}: it is an embedding, whose lora_A starts at zero, "
            "expected layers that draw it. Leave embeddings out of target_modules, or leave "
            "freeze_lora_a out."
        )


def _check_even(config: LoraConfig, sites: list[Site]) -> None:
    """Refuse a rank that the orthogonal initialisation cannot halve."""
    odd = [f"{site.path} (r={site.r})" for site in sites if site.r % 2]
    if config.init_lora_weights == "orthogonal" and odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise ShapeError(
            f"Cannot initialise {odd[0]}{more} with init_lora_weights='orthogonal': got an odd "
            "rank, expected an even one, half of it for each factor. Change r or rank_pattern."
        )


def _note_skipped(
    config: LoraConfig, modules: dict[str, nn.Module], plan: InjectionPlan, outputs: set[int]
) -> None:
    """Record the linear layers that the selection left out for a reason worth showing."""
    targets = config.target_modules
    everything = targets is None or targets == ALL_LINEAR
    for path, module in modules.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if any(path == head or path.startswith(f"{head}.") for head in plan.heads):
            if everything or name_matches(targets or (), path):
                plan.skipped.append((path, "trained in full"))
        elif everything and id(module) in outputs:
            plan.skipped.append((path, "the output head"))


def plan_biases(plan: InjectionPlan, free: Mapping[str, nn.Module]) -> None:
    """Add the biases that `config.bias` trains.

    As in PEFT, "all" means every parameter whose own name is "bias"; T5's table of relative
    positions, `relative_attention_bias.weight`, is none.

    Args:
        plan: Its sites are known already.
        free: The base's modules outside the heads, by path.
    """
    if plan.config.bias == "none":
        return
    site_paths = {site.path for site in plan.sites}
    for path, module in free.items():
        if module._parameters.get("bias") is None:
            continue
        if path in site_paths:
            plan.site_biases.add(path)
        elif plan.config.bias == "all" and isinstance(module, AdaptedLayer):
            raise TargetError(
                f"bias='all' would train the bias of {path}, which another adapter adapts and "
                "this one does not. Adapt the same layers, or use bias='lora_only'."
            )
        elif plan.config.bias == "all":
            plan.other_biases[path] = module


def is_free(path: str, plan: InjectionPlan) -> bool:
    """Return whether a module path lies outside the heads of a plan."""
    return bool(path) and not any(path == h or path.startswith(f"{h}.") for h in plan.heads)


def describe(module: nn.Module) -> str:
    """Return the class name a user knows this module by."""
    if isinstance(module, AdaptedLayer):
        return module.plain_class.__name__
    return (
        plain_class_of(module).__name__
        if isinstance(module, ReplacedModule)
        else type(module).__name__
    )
