"""Running the base alone on batches to observe the adapted layers."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lorakit.config import NOT_COUNTED
from lorakit.errors import DataError
from lorakit.initialization.streamed_components import StreamedComponents
from lorakit.injection import disable_adapters
from lorakit.layers import AdaptedLayer
from lorakit.layers.offload import execution_device

Batch = Tensor | Mapping[str, Any] | tuple[Any, ...] | list[Any]
Loss = Callable[[nn.Module, Any], Tensor]


@contextmanager
def _base_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Run the base alone, without dropout, in a `with` block."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with disable_adapters(model):
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:  # other parameters that the caller trains get no gradient
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in trained:
                    parameter.requires_grad_(True)
    finally:
        for module in in_training:
            module.training = True


@torch.no_grad()
def input_components(
    model: nn.Module,
    layers: Mapping[str, AdaptedLayer],
    batches: Iterable[Batch],
    components: Mapping[str, int],
) -> tuple[dict[str, StreamedComponents], dict[str, str]]:
    """Accumulate the principal components of each layer's input.

    Layers that read the same tensor share them. Positions that are padding, or whose label does not
    count, are left out.

    Args:
        model: A model with adapters.
        layers: The layers to observe, by path.
        batches: Inputs of the model.
        components: Number of principal components for each layer.

    Returns: The components by the path of the first layer that reads a tensor, and that path for
        every layer that was reached.
    """
    leaders: dict[str, str] = {}
    sums: dict[str, StreamedComponents] = {}
    masks: list[Tensor] = []
    seen: list[tuple[weakref.ref[Tensor], str]] = []
    wanted, counts = dict(components), False

    def observe(path: str, x: Tensor) -> None:
        if path not in leaders:
            leader = next((first for tensor, first in seen if tensor() is x), path)
            leaders[path] = leader
            seen.append((weakref.ref(x), path))
        if counts and leaders[path] == path:
            components_of_input = sums.setdefault(path, StreamedComponents(wanted[path]))
            components_of_input.add(_select_positions(x, masks))

    batches = _Repeatable(batches)
    with _base_in_evaluation(model), _observing_inputs(layers, observe):
        _run(model, layers, batches.first)  # to find the layers that read the same tensor
        for path, leader in leaders.items():
            wanted[leader] = max(wanted[leader], wanted[path])
        counts = True
        for batch in batches:
            masks[:] = _masks(batch)
            _run(model, layers, batch)
    return sums, leaders


class _Repeatable:
    """Batches of which the first can be read before iterating over all."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._rest = iter(batches)
        try:
            self.first: Any = next(self._rest)
        except StopIteration:
            raise DataError(
                "Cannot initialize an adapter from data: got no batches, expected at least one. "
                "Pass a list of the model's inputs."
            ) from None

    def __iter__(self) -> Iterator[Any]:
        yield self.first
        yield from self._rest


@contextmanager
def _observing_inputs(
    layers: Mapping[str, AdaptedLayer], observe: Callable[[str, Tensor], None]
) -> Iterator[None]:
    def hook_of(path: str) -> Callable[..., None]:
        return lambda _, args, kwargs: observe(path, _input(args, kwargs))

    handles = [
        layer.register_forward_pre_hook(hook_of(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _masks(batch: Any) -> list[Tensor]:
    """Return masks of the positions that count: of the inputs, and of the labels."""
    if not isinstance(batch, Mapping):
        return []
    ids, labels = batch.get("input_ids"), batch.get("labels")
    inputs = batch.get("attention_mask")
    if inputs is None and isinstance(ids, Tensor):
        inputs = torch.ones_like(ids)
    masks = [] if inputs is None else [inputs.bool()]
    if isinstance(labels, Tensor) and labels.ndim > 1:
        counted = labels != NOT_COUNTED
        if masks and masks[0].shape == counted.shape:
            masks = [masks[0] & counted.to(masks[0].device)]
        else:
            masks.append(counted)
    return masks


def _select_positions(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Return an activation (*, in) as (n, in), only positions that count if a mask fits it."""
    mask = next((mask for mask in masks if x.ndim > 2 and mask.shape == x.shape[:-1]), None)
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask.to(x.device)]


def mean_gradients(
    model: nn.Module,
    layers: Mapping[str, AdaptedLayer],
    batches: Iterable[Batch],
    loss: Loss | None,
) -> dict[str, Tensor]:
    """Return the mean gradient of the loss with respect to each weight that was reached.

    It is computed from the layer's input and the gradient of its output, so no parameter needs a
    gradient, and the weight may be quantized.

    Args:
        model: A model with adapters.
        layers: The layers to observe, by path.
        batches: Inputs of the model.
        loss: Function of the model and a batch; None takes the `loss` of the model's output.

    Returns: (out, in) in float32 by path, in the CPU's memory.
    """
    gradients: dict[str, Tensor] = {}

    def add(path: str, x: Tensor, g: Tensor) -> None:
        x, g = (tensor.reshape(-1, tensor.shape[-1]).float() for tensor in (x, g))
        gradient = (g.T @ x).cpu()
        gradients[path] = gradients[path].add_(gradient) if path in gradients else gradient

    def hook_of(path: str) -> Callable[..., Tensor | None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():  # such as of the reference of a preference loss
                return None
            x = _input(args, kwargs).detach()
            # No layer before this one needs a gradient, as the base is frozen.
            observed = output if output.requires_grad else output.requires_grad_().clone()
            observed.register_hook(lambda g: add(path, x, g))
            return None if observed is output else observed

        return hook

    handles = [
        layer.register_forward_hook(hook_of(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    count = 0
    try:
        with _base_in_evaluation(model), torch.enable_grad():
            for batch in _Repeatable(batches):
                value = _loss_of(model, layers, batch) if loss is None else loss(model, batch)
                value.backward()
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    return {path: gradient.div_(count) for path, gradient in gradients.items()}


def _loss_of(model: nn.Module, layers: Mapping[str, AdaptedLayer], batch: Any) -> Tensor:
    loss = getattr(_run(model, layers, batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise DataError(
            "Cannot initialize an adapter with 'lora_ga': the model's output has no loss, expected "
            "batches with labels. Add them, or pass loss=, which takes the model and a batch."
        )
    return loss


def _run(model: nn.Module, layers: Mapping[str, AdaptedLayer], batch: Any) -> Any:
    device = execution_device(next(iter(layers.values())))
    batch = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, _plain(batch))
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _plain(batch: Any) -> Any:
    """Return a batch of any mapping, such as transformers' BatchEncoding, as a dictionary."""
    return dict(batch) if isinstance(batch, Mapping) else batch
