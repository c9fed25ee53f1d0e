"""LoRA on the experts of transformers' mixture-of-experts models, stacked in 3-D parameters."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorakit.layers.class_swap import mixed_class
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.replaced import plain_class_of, swap_plain_class
from lorakit.ops import LowRankTerm, draw_seed, low_rank_linear
from lorakit.ops.compute_dtype import autocast_dtype
from lorakit.ops.routing import Route

EXPERT_PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
"""Names of the stacked weights, in the order in which transformers' classes register them."""

_CONVENTION = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "num_experts")
"""Attributes of the classes that transformers decorates with `use_experts_implementation`."""


def is_known_experts(module: nn.Module) -> bool:
    """Return whether a module's forward is the one transformers' experts share."""
    return callable(getattr(module, "_apply_gate", None)) and all(
        name in vars(module) for name in _CONVENTION
    )


def expert_parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the stacked weights of known experts that can be adapted."""
    first = "gate_up_proj" if module.has_gate else "up_proj"
    names = (first, "down_proj")
    return tuple(name for name in names if _is_stack(module._parameters.get(name)))


def _is_stack(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.ndim == 3 and parameter.dtype.itemsize > 1


class LoraExperts(nn.Module):
    """Experts y = Σ w (gate(x W1ᵀ + s (x A1ᵀ) B1ᵀ)) W2ᵀ + …, each on the tokens routed to it.

    No update is ever multiplied out: tokens are sorted by expert, and every expert runs its two
    adapted layers separately. While no update acts, the forward of transformers runs.

    Attributes:
        adapted_parameters: The stacked weights that carry updates, by name.
    """

    plain_class: ClassVar[type[nn.Module]]
    adapted_parameters: nn.ModuleDict
    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    has_post_expert_norm: bool

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Map (tokens, hidden), given (tokens, top_k) experts and weights, to (tokens, hidden)."""
        parameters = self.bind_parameters()
        for parameter in parameters:
            reason = "experts, which see tokens, not rows"
            parameter.refuse_rows(parameter.parameter_name, reason)
        if not any(parameter.acting_updates() for parameter in parameters):
            return super().forward(*args, **kwargs)
        if kwargs:
            # The names of the arguments differ between models, their order does not.
            bound = inspect.signature(super().forward).bind(*args, **kwargs)
            args = tuple(bound.arguments.values())
        hidden, top_k_index, top_k_weights = args
        return self._route(hidden, top_k_index, top_k_weights)

    def bind_parameters(self) -> list[AdaptedParameter]:
        """Return the adapted parameters, each bound to these experts."""
        return [parameter.bind(self) for parameter in self.adapted_parameters.values()]  # type: ignore[operator]  # an attribute of a module

    def restore_in_place(self) -> None:
        """Swap the plain class back and drop every update."""
        del self.adapted_parameters
        swap_plain_class(self, self.plain_class)

    def _route(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        first = _Projection(self, "gate_up_proj" if self.has_gate else "up_proj")
        last = _Projection(self, "down_proj")
        route = Route(top_k_index, self.num_experts)
        x = route.dispatch(hidden)  # (pairs, hidden)
        if autocast_dtype(x.device.type) is None:
            x = x.to(last.weights[0].dtype)
        outputs = []
        for expert, tokens in enumerate(x.split([*route.counts, len(x) - sum(route.counts)])):
            if expert == self.num_experts:
                outputs.append(tokens.new_zeros(tokens.shape))
            elif len(tokens):
                h = first(expert, tokens)
                h = self._apply_gate(h) if self.has_gate else self.act_fn(h)  # type: ignore[operator]  # an attribute of a module
                h = last(expert, h)
                outputs.append(self.post_expert_norm(h) if self.has_post_expert_norm else h)  # type: ignore[operator]  # an attribute of a module
        dtype = outputs[0].dtype
        y = torch.cat([output.to(dtype) for output in outputs])
        y = y * route.sort(top_k_weights).unsqueeze(-1)
        return route.combine(y).to(hidden.dtype)


class _Projection:
    """One of the two stacked weights with its terms, split by expert once per pass."""

    def __init__(self, experts: LoraExperts, name: str) -> None:
        # `unbind` is one autograd node for all experts, where indexing would be one for each.
        weights = getattr(experts, name)
        self.weights = (weights.transpose(-2, -1) if experts.is_transposed else weights).unbind()
        self.biases = getattr(experts, f"{name}_bias").unbind() if experts.has_bias else None
        self.terms: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], LowRankTerm]] = []
        if name in experts.adapted_parameters:
            parameter: AdaptedParameter = experts.adapted_parameters[name]  # type: ignore[assignment]  # an item of a ModuleDict
            terms = parameter.operands(parameter.acting_updates()).terms
            self.terms = [(term.A.unbind(), term.B.unbind(), term) for term in terms]

    def __call__(self, expert: int, x: Tensor) -> Tensor:
        bias = None if self.biases is None else self.biases[expert]
        # A mask depends on the position, so experts with one seed would drop the same elements.
        drops = any(term.seed is not None for *_, term in self.terms)
        seed = draw_seed() if drops else None
        terms = [
            term._replace(A=A[expert], B=B[expert], seed=None if term.seed is None else seed)
            for A, B, term in self.terms
        ]
        return low_rank_linear(x, self.weights[expert], bias, terms)


def get_adapted_parameter(experts: nn.Module, name: str) -> AdaptedParameter:
    """Return the `AdaptedParameter` of a stacked weight: the attached one, or a new one."""
    if isinstance(experts, LoraExperts) and name in experts.adapted_parameters:
        return experts.adapted_parameters[name].bind(experts)  # type: ignore[operator,return-value]  # an item of a ModuleDict
    return AdaptedParameter(experts, name)


def attach(parameter: AdaptedParameter) -> None:
    """Make the forward of experts read an adapted parameter, and swap their class if necessary."""
    experts = parameter.weight_owner
    if not isinstance(experts, LoraExperts):
        swap_plain_class(experts, mixed_class(LoraExperts, plain_class_of(experts), "Lora"))
        experts.adapted_parameters = nn.ModuleDict()
    experts.adapted_parameters[parameter.parameter_name] = parameter  # type: ignore[operator,index]  # an item of a ModuleDict
