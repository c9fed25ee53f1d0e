"""The selection that an adapter's file records."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.config import LoraConfig
from lorakit.injection.selection.adapted_classes import describe
from lorakit.injection.selection.attention import attention_outputs
from lorakit.injection.selection.parameters import WEIGHT, modules_by_path, recorded_parameters
from lorakit.injection.selection.peft_names import is_taken_for_experts
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.targets import compact_targets
from lorakit.injection.selection.variants import obstacle_of_parameters
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.kinds.read_weight import LoraReadWeight


def _recorded_targets(model: nn.Module, plan: InjectionPlan) -> dict[str, Any]:
    """Return target_modules and target_parameters that select exactly what a plan adapts."""
    modules = {path: m for path, m in modules_by_path(model).items() if path}
    stacked = [s.path for s in plan.sites if s.adapted_class is AdaptedParameter]
    by_weight = _find_named_by_weight(model, plan)
    parameters = [*stacked, *(f"{path}.{WEIGHT}" for path in by_weight)]
    adapted = {site.path for site in plan.sites}
    # An attention's name includes its output projection.
    outputs = {out for out, attention in attention_outputs(modules).items() if attention in adapted}
    implied = {*stacked, *outputs}
    targets = [s.path for s in plan.sites if s.path not in implied and s.path not in by_weight]
    return {
        "target_modules": compact_targets(targets, [p for p in modules if p not in implied]),
        "target_parameters": recorded_parameters(parameters, modules, plan.config),
    }


def _find_named_by_weight(model: nn.Module, plan: InjectionPlan) -> set[str]:
    """Return the modules that must be selected by their weight's name, in lorakit or in PEFT."""
    found = {s.path for s in plan.sites if issubclass(s.adapted_class, LoraReadWeight)}
    if obstacle_of_parameters(plan.config) is None:  # otherwise PEFT has it only for layers, too
        layers = [s.path for s in plan.sites if issubclass(s.adapted_class, AdaptedLinear)]
        found.update(path for path in layers if is_taken_for_experts(model, path))
    return found


def recorded_config(model: nn.Module, plan: InjectionPlan) -> LoraConfig:
    """Return the configuration with its patterns resolved to the modules it selected.

    Every reader of the file then selects the same modules, whatever its defaults are.

    Raises:
        TargetError: No names distinguish its parameters from others of the model.
    """
    return plan.config.model_copy(
        update={
            **_recorded_targets(model, plan),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
            "modules_to_save": tuple(plan.heads),
            "fan_in_fan_out": any(_is_conv1d(site.module) for site in plan.sites),
        }
    )


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is GPT-2's Conv1D, or was one before quantization."""
    was_conv1d = vars(module).get("source_cls") is Conv1D
    return was_conv1d or describe(module) == "Conv1D"
