"""Activating and removing the adapters of a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from lorakit.config import LoraConfig
from lorakit.errors import AdapterStateError
from lorakit.injection.state import (
    AdapterState,
    adapted_and_replaced_modules,
    adapted_layers,
    create_state,
    drop_state,
    own_parameters,
    replaced_modules,
    require_adapter,
    require_state,
    require_unmerged,
    state_of,
    take_over_quantized,
    unwrap,
)
from lorakit.injection.whole_modules import disable_fast_paths, set_fused_mlp
from lorakit.layers import AdaptedLayer, ReplacedModule, restore_in_place


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters a model carries, in the order they were added."""
    state = state_of(model)
    return () if state is None else tuple(state.configs)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters that currently act."""
    state = state_of(model)
    return () if state is None else state.active


def adapter_config(model: nn.Module, name: str = "default") -> LoraConfig:
    """Return the configuration of an adapter.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    return require_adapter(model, name).configs[name]


def set_adapter(model: nn.Module, names: str | Sequence[str] | None) -> None:
    """Choose which adapters act; the updates of several are added up.

    Parameters of an adapter require gradients while it acts, if it was added as trainable. On a
    shared base this switches the task without touching a base weight.

    Args:
        model: A model with adapters.
        names: One name, several, or None for the base alone.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: The model is merged, or two of the adapters train the same head or bias.
    """
    require_unmerged(model, "change the active adapters")
    wanted = () if names is None else (names,) if isinstance(names, str) else tuple(names)
    state = require_state(model)
    for name in wanted:
        require_adapter(model, name)
    activate(unwrap(model), state, tuple(dict.fromkeys(wanted)))


def activate(model: nn.Module, state: AdapterState, names: tuple[str, ...]) -> None:
    """Make these adapters act and these only, with their gradients.

    Only the adapters that act now or acted before are touched, so the cost does not grow with
    the number of adapters the model carries.
    """
    _check_exclusive(model, names)
    layers, replaced = adapted_and_replaced_modules(model)
    for layer in layers:
        layer.activate(names)
    for module in replaced:
        module.active_copy = next((name for name in names if name in module.trained_copies), None)
    before = (*state.active, *state.modules_with_trained_tokens)
    trained = {name: False for name in before if name in state.configs}
    set_trained(layers, replaced, trained | {name: state.trainable[name] for name in names})
    state.active = names
    state.modules_with_trained_tokens = ()


@contextmanager
def restoring_activation(model: nn.Module, names: Sequence[str] = ()) -> Iterator[None]:
    """Run a block that may change which adapters act; if it fails, they act as before.

    Args:
        model: A model with adapters.
        names: Adapters that the block may activate, besides those that act already.
    """
    model, state = unwrap(model), require_state(model)
    layers, replaced = adapted_and_replaced_modules(model)
    active, in_rows = state.active, state.modules_with_trained_tokens
    concerned = {*active, *in_rows, *names}
    updates = [layer.active_updates for layer in layers]
    copies = [module.active_copy for module in replaced]
    flags = [
        (parameter, parameter.requires_grad)
        for holders in (*(layer.updates for layer in layers), *(m.trained_copies for m in replaced))
        for name in concerned & holders.keys()
        for parameter in holders[name].parameters()
    ]
    try:
        yield
    except BaseException:
        for layer, names_here in zip(layers, updates, strict=True):
            if isinstance(layer, AdaptedLayer):
                layer.activate(names_here)
        for module, name in zip(replaced, copies, strict=True):
            if isinstance(module, ReplacedModule):
                module.active_copy = name
        for parameter, required in flags:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
        state.active, state.modules_with_trained_tokens = active, in_rows
        raise


def set_trained(
    layers: Sequence[AdaptedLayer], replaced: Sequence[ReplacedModule], trained: Mapping[str, bool]
) -> None:
    """Set whether the parameters of these adapters require gradients."""
    if not trained:
        return
    for layer in layers:
        updates = layer.updates._modules
        for name, is_trained in trained.items():
            update = updates.get(name)
            if update is not None:
                update.require_gradients_(is_trained)  # type: ignore[operator]  # a LowRankUpdate
    for module in replaced:
        here = [name for name in trained if name in module.trained_copies]
        # A copy may share parameters, or whole children, with the base's module.
        shared = own_parameters(module) if here else {}
        for name in here:
            for parameter in module.trained_copies[name].parameters():
                if id(parameter) not in shared and parameter.is_floating_point():
                    parameter.requires_grad_(trained[name])


def _check_exclusive(model: nn.Module, names: tuple[str, ...]) -> None:
    """Refuse adapters that train the same head or bias.

    A trained copy also hides the updates that others have on its module or inside it.
    """
    if len(names) < 2:
        return
    layers = list(adapted_layers(model))
    holders: dict[str, list[str]] = {}
    for path, module in replaced_modules(model):
        if any(name in module.trained_copies for name in names):
            inside = [layer for p, layer in layers if p == path or p.startswith(f"{path}.")]
            holders[path] = [
                name
                for name in names
                if name in module.trained_copies or any(name in layer.updates for layer in inside)
            ]
    for path, layer in layers:
        for name in names:
            variants = layer.updates[name].variants if name in layer.updates else ()
            for variant in variants:  # type: ignore[union-attr]  # a LowRankUpdate
                if variant.is_of_base:
                    holders.setdefault(f"{path}.{variant.name}", []).append(name)
    for path, rivals in holders.items():
        if len(rivals) > 1:
            raise AdapterStateError(
                f"Adapters {rivals} cannot act together: each has its own {path!r}, expected one "
                "at most. Activate one of them, or use adapters without trained heads and biases."
            )


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Run the base alone inside a `with` block; the active adapters come back after it.

    Raises:
        AdapterNameError: The model carries no adapter.
        AdapterStateError: The model is merged.
    """
    require_unmerged(model, "disable the adapters")
    state = require_state(model)
    before = state.active
    activate(unwrap(model), state, ())
    try:
        yield
    finally:
        activate(unwrap(model), state, tuple(name for name in before if name in state.configs))


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove one adapter; layers and heads that no adapter uses become plain again.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: The model is merged, or the adapter acts: the outputs would change
            silently.
    """
    require_unmerged(model, "delete an adapter")
    state = require_adapter(model, name)
    if name in state.active:
        others = [other for other in state.configs if other != name]
        choice = repr(others[0]) if others else "None"
        raise AdapterStateError(
            f"Cannot delete adapter {name!r}: it is active, expected one that does not act. Call "
            f"set_adapter(model, {choice}) first, or unload(model) to take all adapters out."
        )
    remove_adapters(model, (name,))


def remove_adapters(model: nn.Module, names: Sequence[str]) -> None:
    """Remove adapters from a model, whether they act or not."""
    model, state = unwrap(model), require_state(model)
    for name in names:
        del state.configs[name], state.trainable[name]
    state.active = tuple(name for name in state.active if name not in names)
    layers, replaced = adapted_and_replaced_modules(model)
    for layer in layers:
        for name in names:
            if name in layer.updates:
                del layer.updates[name]
        layer.activate(layer.active_updates)
        if not layer.updates:
            layer.restore_in_place()
    for module in replaced:
        for name in names:
            if name in module.trained_copies:
                del module.trained_copies[name]
        module.active_copy = None if module.active_copy in names else module.active_copy
        if not module.trained_copies:
            restore_in_place(module)
    disable_fast_paths(model)
    if not state.configs:
        set_fused_mlp(model, False)
        drop_state(model)
    else:
        take_over_quantized(model)


@contextmanager
def adding_adapter(
    model: nn.Module, name: str, config: LoraConfig, is_trainable: bool
) -> Iterator[None]:
    """Run a block that gives the modules of a model the parts of an adapter.

    If it fails, the model does not carry the adapter.
    """
    state = create_state(model)
    is_first = not state.configs
    state.configs[name], state.trainable[name] = config, is_trainable
    try:
        if is_first:
            model.requires_grad_(False)
            take_over_quantized(model)
        yield
        if is_first:
            set_fused_mlp(model, True)
    except BaseException:
        remove_adapters(model, (name,))
        raise


def unload(model: nn.Module) -> nn.Module:
    """Remove every adapter and return the same model with plain layers and the base's weights.

    Raises:
        AdapterNameError: The model carries no adapter.
        AdapterStateError: The model is merged.
    """
    require_unmerged(model, "unload the adapters")
    state = require_state(model)
    remove_adapters(model, tuple(state.configs))
    return unwrap(model)
