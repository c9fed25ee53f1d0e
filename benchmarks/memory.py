"""Bytes saved for backward, and the peak of memory during a step."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

_ALLOCATION = "[memory]"


def saved_for_backward(forward: Callable[[], Tensor], excluded: Iterable[Tensor]) -> int:
    """Count the bytes that autograd keeps between forward and backward.

    Each storage counts once, whoever saves it and however often; a saved view counts as the whole
    storage it keeps alive.

    Args:
        forward: Runs forward and returns the loss.
        excluded: Tensors that live on anyway: parameters, buffers and the batch.

    Returns: Bytes.
    """
    known = {tensor.untyped_storage()._cdata for tensor in excluded}
    kept: dict[int, torch.UntypedStorage] = {}  # holds storages, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    saved = sum(storage.nbytes() for key, storage in kept.items() if key not in known)
    del loss
    return saved


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Measure how far memory rises above its level at the start while `step` runs.

    On a CPU the profiler's record of torch's allocator is added up, so buffers that a library
    takes from the operating system itself are not seen; on CUDA torch's own counter is read.

    Returns: Bytes.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocations = [event for event in events if event.name() == _ALLOCATION]
    level = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def resident_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Return the bytes of a model's parameters and buffers and of its optimizer's state."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for state in optimizer.state.values() if optimizer else ():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
