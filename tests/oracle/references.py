"""What an operation has to give where PEFT cannot say: from dense weights, or from parts of it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

import lorakit
from lorakit.injection.state import adapted_layers, replaced_modules
from oracle.operations import LEARNING_RATE, NAMES_OF_ROWS, WEIGHTS, Case, loss_of
from tiny_models import tokens


def reference(case: Case, operation: str) -> Tensor:
    """Return the expected outputs of an operation."""
    if operation == "off":
        return case.kind.output(case.original_base)
    if operation == "rows":
        adapted, base = case.kind.output(case.original_ours), case.kind.output(case.original_base)
        rows = [(base if name is None else adapted)[i] for i, name in enumerate(NAMES_OF_ROWS)]
        return torch.stack(rows)
    if operation == "gradients":
        return _stepped_dense(case)
    if operation == "combined":
        adapters = {
            "default": lorakit.Adapter.from_model(case.original_ours),
            "second": case.second,
        }
        changes = [(WEIGHTS[name], adapter) for name, adapter in adapters.items()]
    else:
        changes = [(1.0, lorakit.Adapter.from_model(case.original_ours))]
    return case.kind.output(_with_changes(case, changes))


@torch.no_grad()
def _with_changes(case: Case, changes: list[tuple[float, lorakit.Adapter]]) -> nn.Module:
    """Return the base with Σ w s B A added to its weights and trained tensors in place."""
    layers = dict(adapted_layers(case.original_ours))
    plain = case.base()
    state = plain.state_dict()
    for weight, adapter in changes:
        for path in adapter.factors:
            layer = layers[path]
            place = state[path if path in state else f"{path}.{layer.weight_name}"]
            A, B = adapter.factors[path]
            delta = adapter.config.scaling_for(path) * (B @ A)
            oriented = layer.orient
            if getattr(layer, "groups", 1) > 1:
                place, oriented = _without_groups(plain.get_submodule(path), layer.base_weight())
            place.copy_(_changed(place, weight * delta, adapter.magnitudes.get(path), oriented))
        for key, tensor in adapter.replaced.items():
            state[key].copy_(tensor)
    return plain


def _without_groups(conv: nn.Module, dense: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Make a convolution one of all channels; return its weight, and what turns it to rows."""
    shape = (conv.out_channels, conv.in_channels, *conv.kernel_size)
    conv.weight, conv.groups = nn.Parameter(dense.reshape(shape).clone()), 1
    return conv.weight, lambda one: one.reshape(shape) if one.ndim == 2 else one.flatten(1)


def _changed(
    W0: Tensor, delta: Tensor, magnitude: Tensor | None, orient: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return W0 with an update, its rows scaled to a length where there is a magnitude."""
    W = W0 + orient(delta)
    if magnitude is None:
        return W
    rows = orient(W)
    return orient(rows * (magnitude / rows.detach().norm(dim=1))[:, None])


def _stepped_dense(case: Case) -> Tensor:
    """Return outputs before and after a step whose gradients went through dense weights."""
    model = case.ours
    before = _through_dense_weights(case, model)
    loss_of(before).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.requires_grad:
                parameter.sub_(LEARNING_RATE * parameter.grad)
        after = _through_dense_weights(case, model)
    return torch.cat([before, after, after - before]).detach()


def _through_dense_weights(case: Case, model: nn.Module) -> Tensor:
    plain = case.base()
    names = dict(plain.named_parameters())
    weights: dict[str, Tensor] = {}
    for path, layer in adapted_layers(model):
        update = layer.updates["default"]
        A, B = update.operand_factors()  # type: ignore[operator]
        name = path if path in names else f"{path}.{layer.weight_name}"
        W0, delta = names[name].detach(), update.scaling * (B @ A)  # type: ignore[operator]
        oriented = layer.orient
        if getattr(layer, "groups", 1) > 1:
            W0, oriented = _without_groups(plain.get_submodule(path), layer.base_weight())
        weights[name] = _changed(W0, delta, update.magnitude, oriented)  # type: ignore[arg-type]
        if update.bias is not None:
            weights[f"{path}.bias"] = update.bias  # type: ignore[assignment]
    for path, module in replaced_modules(model):
        copied = module.trained_copies["default"]
        weights |= {f"{path}.{name}": tensor for name, tensor in copied.named_parameters()}
    given: Mapping[str, Tensor] = (
        tokens(plain, rows=len(NAMES_OF_ROWS)) if case.kind.inputs is None else case.kind.inputs()
    )
    out = functional_call(plain, weights, kwargs=dict(given))
    return out if isinstance(out, Tensor) else out.logits
