"""What an adapter's file says was selected."""

from typing import Any

from torch import nn

from lorakit.injection.attention import attention_outputs
from lorakit.injection.parameters import is_carrier, recorded_parameters
from lorakit.injection.plan import InjectionPlan
from lorakit.injection.state import base_modules
from lorakit.injection.targets import compact_targets
from lorakit.layers.parameter import AdaptedParameter


def recorded_targets(model: nn.Module, plan: InjectionPlan) -> dict[str, Any]:
    """Return target_modules and target_parameters that select exactly what a plan adapts.

    Raises:
        TargetError: No names tell its parameters from others of the model.
    """
    modules = {path: m for path, m in base_modules(model) if path and not is_carrier(m)}
    parameters = [s.path for s in plan.sites if s.adapted_class is AdaptedParameter]
    # An attention's name stands for its output projection too.
    implied = {*parameters, *attention_outputs(modules)}
    targets = [site.path for site in plan.sites if site.path not in implied]
    return {
        "target_modules": compact_targets(targets, [p for p in modules if p not in implied]),
        "target_parameters": recorded_parameters(parameters, modules, plan.config),
    }
