"""The plan of an injection, made before the model is changed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.errors import TargetError
from lorakit.injection.selection.adapted_classes import adapted_class_of, obstacle
from lorakit.injection.selection.all_linear import (
    left_out_of_all_linear,
    untargeted_experts,
    with_lower_ranks,
)
from lorakit.injection.selection.attention import (
    OUTPUT_OBSTACLE,
    attention_outputs,
    is_output,
    with_output_patterns,
    with_outputs,
)
from lorakit.injection.selection.bypassed_layers import bypassed_layers, require_called
from lorakit.injection.selection.checks import check_sites, check_slices, split_by_conv_groups
from lorakit.injection.selection.heads import choose_heads, output_layers, trained_modules
from lorakit.injection.selection.parameters import (
    class_for,
    modules_by_path,
    select_parameters,
)
from lorakit.injection.selection.sites import Site
from lorakit.injection.selection.targets import is_inside, match_targets, name_matches, selects_all
from lorakit.injection.selection.trained_tokens import TokenSite, conflicts, find_token_sites
from lorakit.injection.selection.variants import base_dependent
from lorakit.layers import AdaptedLayer


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
    lowered: list[tuple[str, int]] = field(default_factory=list)
    """Layers that allow only a lower rank, by path, with that rank."""
    notes: list[str] = field(default_factory=list)
    """Decisions made by default, in sentences."""
    tokens: list[TokenSite] = field(default_factory=list)
    """Trained tokens of embeddings and output layers."""


def plan_from_config(model: nn.Module, config: LoraConfig) -> InjectionPlan:
    """Find the modules that a configuration adapts and trains.

    Raises:
        TargetError: A pattern selects nothing or something that cannot be adapted; lists all.
        ShapeError: A rank is larger than its layer.
    """
    modules = modules_by_path(model)
    choice = choose_heads(model, modules, config)
    config = config.model_copy(update={"task_type": choice.task_type})
    plan = InjectionPlan(config, notes=list(choice.notes))
    problems: list[str] = []
    plan.heads = trained_modules(model, modules, config, choice, problems)

    free = free_modules(modules, plan)
    adaptable = {p: c for p, m in free.items() if (c := adapted_class_of(m)) is not None}
    outputs = {p: a for p, a in attention_outputs(free).items() if a in adaptable}
    adaptable = {path: kind for path, kind in adaptable.items() if path not in outputs}
    heads = output_layers(model)
    bypassed = bypassed_layers(modules)
    everything = selects_all(config)
    left_out = left_out_of_all_linear(config, free, bypassed) if everything else {}
    default = [
        path
        for path, kind in adaptable.items()
        if kind.is_linear and id(modules[path]) not in heads and path not in left_out
    ]
    parameters = select_parameters(config, free, problems)
    selected, target_problems = match_targets(
        config, list(adaptable), default, list(parameters), choice.excluded
    )
    adapted = with_outputs(selected, outputs)
    problems += _find_blocked(config, free, plan, adapted) + target_problems
    if everything and not problems:
        config, plan.lowered = with_lower_ranks(config, {p: modules[p] for p in adapted})
    if problems:
        raise TargetError("\n".join(problems))

    found = {path: outputs[path] for path in adapted if path in outputs}
    plan.config = config = with_output_patterns(config, found)
    for path, module in ({path: modules[path] for path in adapted} | parameters).items():
        kind = class_for(module, path in outputs)
        if kind is not None:
            r, scaling = config.rank_for(path), config.scaling_for(path)
            site = Site(path, module, kind, r, scaling, config.slices_for(path))
            plan.sites.append(site)
    check_slices(config, plan.sites)
    plan.sites = [split_by_conv_groups(site, config) for site in plan.sites]
    check_sites(config, plan.sites)
    _note_skipped(plan, modules, heads)
    plan.skipped += left_out.items()
    if everything:
        plan.skipped += untargeted_experts(free, parameters)
    plan_biases(plan, free)
    plan.tokens = find_token_sites(model, modules, config, problems)
    problems += token_conflicts(plan)
    if problems:
        raise TargetError("\n".join(problems))
    require_called(bypassed, plan.sites)
    return plan


def _find_blocked(
    config: LoraConfig, free: dict[str, nn.Module], plan: InjectionPlan, adapted: Collection[str]
) -> list[str]:
    """Return a problem for each named module that looks like a layer but cannot be adapted."""
    targets = config.target_modules
    explicit = not selects_all(config)
    problems = []
    for path, module in free.items():
        reason = obstacle(module)
        if reason is None or path in adapted:
            continue
        excluded = config.exclude_modules and name_matches(config.exclude_modules, path)
        if explicit and targets and name_matches(targets, path) and not excluded:
            if is_output(module) and _selects_others(targets, path, adapted):
                plan.skipped.append((path, OUTPUT_OBSTACLE))
                continue
            problems.append(
                f"Cannot adapt {path}: {reason}. Leave it out with exclude_modules=[{path!r}]."
            )
        elif not explicit and isinstance(module, (nn.Linear, Conv1D, nn.MultiheadAttention)):
            plan.skipped.append((path, reason))
    return problems


def _selects_others(targets: str | Sequence[str], path: str, adapted: Collection[str]) -> bool:
    """Return whether each name that selects a path also selects an adapted module.

    In SigLIP "out_proj" names a layer of every attention, and one of its pooling head.
    """
    names = [targets] if isinstance(targets, str) else [[n] for n in targets]
    return path not in targets and all(
        any(name_matches(name, other) for other in adapted)
        for name in names
        if name_matches(name, path)
    )


def _note_skipped(plan: InjectionPlan, modules: dict[str, nn.Module], outputs: set[int]) -> None:
    """Record the linear layers that the selection left out for a reason worth showing."""
    everything = selects_all(plan.config)
    for path, module in modules.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if is_inside(path, plan.heads):
            if everything or name_matches(plan.config.target_modules or (), path):
                plan.skipped.append((path, "trained in full"))
        elif everything and id(module) in outputs:
            plan.skipped.append((path, "the output head"))


def plan_biases(plan: InjectionPlan, free: Mapping[str, nn.Module]) -> None:
    """Add the biases that `config.bias` trains.

    As in PEFT, "all" means every parameter whose own name is "bias"; T5's table of relative
    positions, `relative_attention_bias.weight`, is not one.
    """
    if plan.config.bias == "none":
        return
    site_paths = {site.path for site in plan.sites}
    for path, module in free.items():
        if module._parameters.get("bias") is None:
            continue
        if path in site_paths:
            plan.site_biases.add(path)
        elif plan.config.bias == "all" and is_output(module):
            raise TargetError(
                f"bias='all' would train the bias of {path}, which nn.MultiheadAttention reads "
                "without calling it, expected an adapted attention. Name the attention in "
                "target_modules, or use bias='lora_only'."
            )
        elif plan.config.bias == "all" and isinstance(module, AdaptedLayer):
            raise TargetError(
                f"bias='all' would train the bias of {path}, which another adapter adapts and "
                "this one does not. Adapt the same layers, or use bias='lora_only'."
            )
        elif plan.config.bias == "all":
            plan.other_biases[path] = module


def token_conflicts(plan: InjectionPlan) -> list[str]:
    """Return a problem for each module with trained tokens that a plan also changes otherwise."""
    dependent = base_dependent(plan.config)
    adapted = dict.fromkeys((s.path for s in plan.sites), dependent and dependent.title())
    return conflicts(plan.tokens, plan.heads, adapted, plan.other_biases)


def free_modules(modules: Mapping[str, nn.Module], plan: InjectionPlan) -> dict[str, nn.Module]:
    """Return the modules outside the heads of a plan, by path."""
    return {p: m for p, m in modules.items() if p and not is_inside(p, plan.heads)}
