"""Track the module that is running, in forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_iter


@contextmanager
def track_running_module(model: nn.Module, report: Callable[[str], None]) -> Iterator[None]:
    """Report which module of a model is running inside the block.

    Args:
        model: The model. Hooks are global, so that no module appears to have hooks.
        report: Called with "layers.0.q_proj" in forward and "layers.0.q_proj, backward" in
            backward.
    """
    paths = {id(module): path or type(module).__name__ for path, module in model.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(paths.get(id(module), running[-1] if running else ""))
        report(running[-1])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path = running.pop()
        report(running[-1] if running else "loss")
        for node in _nodes(output):
            # Inner modules have marked their nodes already; keep the innermost.
            if "place" not in node.metadata:
                node.metadata["place"] = path
                node.register_prehook(lambda _, path=path: report(f"{path}, backward"))

    handles = (
        torch_module.register_module_forward_pre_hook(enter),
        torch_module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nodes(output: Any) -> Iterator[Any]:
    for value in tree_iter(output):
        if isinstance(value, Tensor) and value.grad_fn is not None:
            yield value.grad_fn
