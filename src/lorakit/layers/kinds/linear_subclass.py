"""LoRA on subclasses of torch.nn.Linear whose forward computes the same product.

Falcon's linear layers compute `x @ W.T + b`, for example. Neither a class's name nor its source
decides: an instance with small random weights is compared with `torch.nn.functional.linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.class_swap import mixed_class
from lorakit.layers.kinds.linear import LoraLinear
from lorakit.layers.replaced import ReplacedModule, plain_class_of

_SETTINGS = (bool, int, float, str, type(None), torch.dtype)
"""Attributes that an instance may have besides those of torch.nn.Linear: they hold no data."""

_IN, _OUT = 5, 3
_SHAPES = ((_IN,), (4, _IN), (2, 3, _IN), (0, _IN))
_SIZES = (1.0, 1e4)


def runs_as_linear(module: nn.Module) -> bool:
    """Return whether the forward of a module computes what torch.nn.Linear computes.

    A module with further parameters, buffers or children does not, nor one whose attributes are
    more than numbers and strings: they might affect the result.
    """
    kind = plain_class_of(module)
    if not issubclass(kind, nn.Linear):
        return False
    if kind.forward is nn.Linear.forward:
        return True
    known = vars(nn.Linear(1, 1, device="meta"))
    ours = {"active_copy", "per_row_adapters"} if isinstance(module, ReplacedModule) else set()
    settings = {n: value for n, value in vars(module).items() if n not in known and n not in ours}
    children = set(module._modules) - {"trained_copies"}
    if children or module._buffers or set(module._parameters) != {"weight", "bias"}:
        return False
    if not all(isinstance(value, _SETTINGS) for value in settings.values()):
        return False
    return _computes_the_same(kind, tuple(sorted(settings.items())), module.bias is not None)


@cache
def _computes_the_same(
    kind: type[nn.Linear], settings: tuple[tuple[str, Any], ...], has_bias: bool
) -> bool:
    """Compare a class with torch.nn.Linear in float64, so a cast to fewer bits shows as well."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    probe = kind.__new__(kind)
    plain = nn.Linear(_IN, _OUT, bias=has_bias, device="meta", dtype=torch.float64)
    probe.__dict__ |= {**vars(plain), **dict(settings)}
    probe.weight = nn.Parameter(draw(_OUT, _IN))
    probe.register_parameter("bias", nn.Parameter(draw(_OUT)) if has_bias else None)
    for is_training in (True, False):
        probe.train(is_training)
        for shape in _SHAPES:
            for size in _SIZES:
                x = draw(*shape) * size
                if not _is_same(probe, x, size):
                    return False
    return True


def _is_same(probe: nn.Linear, x: Tensor, size: float) -> bool:
    expected = F.linear(x, probe.weight, probe.bias)
    try:
        with torch.random.fork_rng(devices=[]):
            got = probe.forward(x.clone())
    except Exception:  # whatever an unknown forward raises on such an input, it is not the same
        return False
    if not isinstance(got, Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    return torch.allclose(got, expected, rtol=1e-12, atol=1e-12 * size)


def linear_subclass(plain: type[nn.Linear]) -> type[LoraLinear]:
    """Return the class that adapts layers of a subclass, itself a subclass of it.

    While no update acts, the forward of the subclass runs.
    """
    return mixed_class(LoraLinear, plain, "Lora")
