"""Where adapters go in a model that does not change, worked out once for adapters that are alike.

The adapters of a server often come from one recipe: equal settings, modules and ranks, and no
tensors beside the factors. Comparing such an adapter with the base takes longer than making its
parts, and would find what it has found for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection.inject import check_plan
from lorakit.injection.selection.checks.bypassed_layers import bypassed_layers
from lorakit.injection.selection.parameters import modules_by_path
from lorakit.injection.selection.plan import InjectionPlan
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from lorakit.injection.selection.recorded_config import recorded_config
from lorakit.injection.selection.sites import AdapterTensors

_Shapes = dict[str, tuple[torch.Size, torch.Size]]


@dataclass(frozen=True)
class Planned:
    """What is known of an adapter and of all that are like it.

    Attributes:
        plan: Where its tensors go.
        recorded: Its configuration with the modules that it selected.
    """

    plan: InjectionPlan
    recorded: LoraConfig


class Plans:
    """Plans adapters for a model; may be used by several threads."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        """Look for layers that the model does not call.

        Args:
            model: A model without adapters, which stays as it is.
            dtype: dtype of factors and trained heads; None as in `add_adapter`.
        """
        self._model = model
        self._dtype = dtype
        self._bypassed = bypassed_layers(modules_by_path(model))
        self._last: tuple[LoraConfig, _Shapes, Planned] | None = None

    def of(self, adapter: AdapterTensors) -> tuple[AdapterTensors, Planned]:
        """Return an adapter with the names of the model, and its plan.

        Raises:
            AdapterMismatchError, TargetError, DtypeError: As in `add_adapter`.
        """
        shapes, last = _shapes(adapter), self._last
        if last is not None and shapes == last[1] and adapter.config == last[0]:
            return adapter, last[2]
        tensors = adapter.in_names_of(self._model)
        plan = plan_from_tensors(self._model, tensors, self._bypassed)
        check_plan(plan, self._dtype)
        planned = Planned(plan, recorded_config(self._model, plan))
        if shapes is not None and tensors is adapter:
            self._last = adapter.config, shapes, planned
        return tensors, planned


def _shapes(adapter: AdapterTensors) -> _Shapes | None:
    """Return the shapes of an adapter's factors; None if its plan depends on anything else."""
    others = (adapter.companions, adapter.replaced, adapter.convolutions)
    if any((*others, adapter.trained_tokens, adapter.base_weights)):
        return None
    return {path: (A.shape, B.shape) for path, (A, B) in adapter.factors.items()}
