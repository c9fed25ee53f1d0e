"""The ways of training one model that are compared: same base weights, same A and B, same batch."""

import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.models import Shape, build_model, shared_copy

LIMIT = "limit"
"""Forward and input gradients with nothing trainable: what no method of training can go below."""
FULL = "full"
LORAKIT = "lorakit"
"""lorakit with the node for whole MLPs off."""
LORAKIT_MLP = "lorakit+mlp"
PEFT = "peft"
"""PEFT with factors in the base's dtype, its quicker setting."""
PEFT_FLOAT32 = "peft, float32 factors"
"""PEFT's default on a base in half precision; lorakit's factors are float32 there as well."""
LORALIB = "loralib"
LORAKIT_COMPILED = "lorakit, compiled"
PEFT_COMPILED = "peft, compiled"

EAGER = (LIMIT, FULL, LORAKIT, LORAKIT_MLP, PEFT, PEFT_FLOAT32, LORALIB)
COMPILED = (LORAKIT_COMPILED, PEFT_COMPILED)

_FACTOR_NAMES = (
    re.compile(r"(?P<path>.+)\.updates\.default\.lora_(?P<letter>[AB])"),  # lorakit
    re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<letter>[AB])\.default\.weight"),  # PEFT
    re.compile(r"(?P<path>.+)\.lora_(?P<letter>[AB])"),  # loralib
)
_SPREAD_OF_B = 0.02


@dataclass
class Variant:
    """One way of training a model.

    Attributes:
        name: One of the names above.
        module: The model.
        call: What is called in a step: the model, or its compiled form.
        factors: lora_A and lora_B by (module path, letter); empty for the limit and full training.
    """

    name: str
    module: nn.Module
    call: Any
    factors: dict[tuple[str, str], nn.Parameter] = field(default_factory=dict)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Run forward and return the loss."""
        return self.call(**batch).loss

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that require gradients."""
        return [p for p in self.module.parameters() if p.requires_grad]


def why_not(name: str, dtype: torch.dtype, device: str) -> str | None:
    """Return why a variant cannot be built here, or None where it can."""
    if name.startswith("peft") and find_spec("peft") is None:
        return "peft is not installed"
    if name == LORALIB and find_spec("loralib") is None:
        return "loralib is not installed"
    if name == LORAKIT_MLP and getattr(lorakit, "set_fused_mlp", None) is None:
        return "this version of lorakit has no node for whole MLPs"
    if name == PEFT_FLOAT32 and dtype == torch.float32:
        return "the same as peft in float32"
    if name in COMPILED and not device.startswith("cuda"):
        return "compiled variants are measured on CUDA"
    return None


def build_variants(
    shape: Shape,
    dtype: torch.dtype,
    *,
    names: Sequence[str] = EAGER + COMPILED,
    r: int = 8,
    dropout: float = 0.0,
    device: str = "cpu",
) -> dict[str, Variant]:
    """Build variants of one model over the same base weights, in train mode.

    Full fine-tuning changes the base weights, so it gets a copy. lorakit is always among
    the variants, since the peers are given its adapter and are compared with it.

    Args:
        shape: The model.
        dtype: dtype of the base.
        names: Which variants; those that cannot be built here are left out with a printed reason.
        r: Rank of every update; lora_alpha is twice that.
        dropout: Probability of dropping an input of the low-rank path.
        device: Where to.
    """
    base = build_model(shape, dtype, device)
    kept = [name for name in EAGER + COMPILED if name in names or name == LORAKIT]
    built: dict[str, Variant] = {}
    adapted = shared_copy(base)
    add_random_adapter(adapted, shape, r=r, dropout=dropout, rounded_to=dtype)
    with saved_adapter(adapted) as directory:
        for name in kept:
            reason = why_not(name, dtype, device)
            variant = None if reason else _build(name, base, adapted, directory, built)
            if variant is None:
                print(f"  without {name}: {reason or 'the model has no MLP it knows'}", flush=True)
            else:
                variant.module.train()
                built[name] = variant
    return built


def _build(
    name: str, base: nn.Module, adapted: nn.Module, directory: Path, built: dict[str, Variant]
) -> Variant | None:
    if name == LIMIT:
        module = frozen_limit(shared_copy(base))
    elif name == FULL:
        module = shared_copy(base, own_weights=True)
    elif name == LORAKIT:
        module = adapted
        switch_fused_mlp(module, False)
    elif name == LORAKIT_MLP:
        module = lorakit_copy(base, directory)
        if not switch_fused_mlp(module, True):
            return None
    elif name in (PEFT, PEFT_FLOAT32):
        module = peft_copy(base, directory, float32_factors=name == PEFT_FLOAT32)
    elif name == LORALIB:
        module = loralib_copy(base, directory)
    else:
        module = built[LORAKIT if name == LORAKIT_COMPILED else PEFT].module
    call = torch.compile(module) if name in COMPILED else module
    return Variant(name, module, call, factors_of(module))


def frozen_limit(model: nn.Module) -> nn.Module:
    """Make a frozen model compute the gradients of its activations, from the embeddings on."""

    def require_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_(True)

    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    for module in model.modules():
        # T5 has one embedding for each stack, with one weight.
        if isinstance(module, nn.Embedding) and module.weight is weight:
            module.register_forward_hook(require_gradient)
    return model


def switch_fused_mlp(model: nn.Module, on: bool) -> bool:
    """Switch lorakit's node for whole MLPs; return whether that could be done."""
    switch = getattr(lorakit, "set_fused_mlp", None)
    # A count of the blocks that were switched, or nothing.
    return switch is not None and switch(model, on) != 0


def add_random_adapter(
    model: nn.Module,
    shape: Shape,
    *,
    name: str = "default",
    r: int = 8,
    dropout: float = 0.0,
    seed: int = 1,
    rounded_to: torch.dtype = torch.float32,
    dtype: torch.dtype | None = None,
) -> None:
    """Add a seeded adapter whose B is not zero, so that every gradient counts.

    The values are ones that `rounded_to` can hold, so that a peer with factors of that dtype has
    the very same. `dtype` is that of the factors, as in `add_adapter`.
    """
    config = lorakit.LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules=shape.targets
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        lorakit.add_adapter(model, config, name, dtype=dtype)
        for key, parameter in model.named_parameters():
            if f".updates.{name}.lora_" not in key:
                continue
            if key.endswith("lora_B"):
                noise = torch.randn(parameter.shape) * _SPREAD_OF_B
                parameter.copy_(noise)
            parameter.copy_(parameter.to(rounded_to))


@contextmanager
def saved_adapter(model: nn.Module, name: str = "default") -> Iterator[Path]:
    """Yield a directory with one of a model's adapters in PEFT's layout."""
    with tempfile.TemporaryDirectory() as folder:
        lorakit.save_adapter(model, Path(folder) / "adapter", name)
        yield Path(folder) / "adapter"


def lorakit_copy(base: nn.Module, directory: Path) -> nn.Module:
    """Return a copy of the base that trains a saved adapter with lorakit."""
    model = shared_copy(base)
    lorakit.load_adapter(model, directory, trainable=True)
    return model


def peft_copy(
    base: nn.Module,
    directory: Path,
    *,
    float32_factors: bool = False,
    trainable: bool = True,
    name: str = "default",
) -> nn.Module:
    """Return a copy of the base that trains (or only runs) a saved adapter with PEFT."""
    with quiet_peft():
        from peft import PeftModel

        return PeftModel.from_pretrained(
            shared_copy(base),
            str(directory),
            adapter_name=name,
            is_trainable=trainable,
            autocast_adapter_dtype=float32_factors,
        )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def loralib_copy(base: nn.Module, directory: Path) -> nn.Module:
    """Return a copy of the base with loralib's layers instead of the adapted ones."""
    import loralib
    from transformers.pytorch_utils import Conv1D

    model = shared_copy(base)
    model.requires_grad_(False)
    adapter = lorakit.Adapter.load(directory)
    for path, (A, B) in adapter.factors.items():
        plain = model.get_submodule(path)
        layer = loralib.Linear(
            A.shape[1],
            B.shape[0],
            r=A.shape[0],
            lora_alpha=adapter.config.lora_alpha,
            lora_dropout=adapter.config.lora_dropout,
            fan_in_fan_out=isinstance(plain, Conv1D),
            merge_weights=False,
            bias=plain.bias is not None,
            device="meta",
        )
        layer.weight, layer.bias = plain.weight, plain.bias  # type: ignore[assignment]
        layer.lora_A = nn.Parameter(A.to(plain.weight))  # type: ignore[arg-type]
        layer.lora_B = nn.Parameter(B.to(plain.weight))  # type: ignore[arg-type]
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model


def factors_of(model: nn.Module) -> dict[tuple[str, str], nn.Parameter]:
    """Return lora_A and lora_B of the adapter "default" by (module path, "A" or "B")."""
    found = {}
    for name, parameter in model.named_parameters():
        match = next(filter(None, (pattern.fullmatch(name) for pattern in _FACTOR_NAMES)), None)
        if match:
            found[match["path"], match["letter"]] = parameter
    return found
