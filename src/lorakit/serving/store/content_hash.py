"""The hash of everything that affects an adapter's outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor

from lorakit.adapters import Adapter

_WITHOUT_EFFECT = {"eva_rho", "freeze_lora_a", "init_batches", "lora_dropout", "task_type"}
"""Settings that matter in training only, or for reading inputs."""


def content_hash(adapter: Adapter) -> str:
    """Return a SHA-256 in hexadecimal digits: equal for equal settings and tensors.

    It depends on the adapter as a value, so neither on the order of keys in its files nor on which
    program wrote them.
    """
    made = hashlib.sha256()
    settings = adapter.config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    made.update(json.dumps(settings, sort_keys=True).encode())
    for label, tensor in _tensors(adapter):
        made.update(f"\n{label} {tensor.dtype} {list(tensor.shape)}\n".encode())
        made.update(_bytes_of(tensor))
    return made.hexdigest()


def _tensors(adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    for path, (A, B) in sorted(adapter.factors.items()):
        kind = "embedding" if path in adapter.embeddings else "module"
        yield f"{kind} A {path}", A
        yield f"{kind} B {path}", B
    for kind in ("magnitudes", "replaced", "trained_tokens", "base_weights"):
        for path, tensor in sorted(getattr(adapter, kind).items()):
            yield f"{kind} {path}", tensor


def _bytes_of(tensor: Tensor) -> memoryview | bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
