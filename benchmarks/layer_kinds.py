"""Kinds of layers beside plain linear ones, each as a single layer: forward and backward.

Every variant has the same base weights. PEFT and loralib take the factors they draw themselves:
what a layer costs does not depend on its numbers.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.measure import Sample, Stopwatch
from benchmarks.options import Options, parse
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD
from benchmarks.variants import LIMIT, LORAKIT, LORALIB, PEFT, why_not

WHOLE = "lorakit, whole matrix"
Arguments = tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A layer to measure.

    Attributes:
        name: Kind and sizes.
        build: Makes the layer, inside a module that calls it `layer`.
        config: Arguments of LoraConfig for lorakit and PEFT alike.
        inputs: Makes what forward takes; the first one wants a gradient.
        ours: Further arguments for lorakit.
    """

    name: str
    build: Callable[[], nn.Module]
    config: dict[str, Any]
    inputs: Callable[[], Arguments]
    ours: dict[str, Any] | None = None


class Holder(nn.Module):
    """Holds one layer, so that it has a name to be targeted by."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the layer; of several outputs return the first."""
        out = self.layer(*inputs)
        return out[0] if isinstance(out, tuple) else out


def experts(hidden: int, inner: int, count: int) -> nn.Module:
    """Return the experts of a Mixtral of these sizes."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=count, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    made = MixtralExperts(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.02)
    return made


def routed(tokens: int, hidden: int, count: int) -> Arguments:
    """Return activations, and two experts with their weights for each token."""
    choice = torch.stack([torch.randperm(count)[:2] for _ in range(tokens)])
    return torch.randn(tokens, hidden), choice, torch.full((tokens, 2), 0.5)


def layers(quick: bool) -> tuple[Layer, ...]:
    """Return the layers to measure, small ones for a quick run."""
    width, tokens, size = (32, 16, 8) if quick else (768, 1024, 32)
    return (
        Layer(
            f"fused {width} x {3 * width}, first and last part of three",
            lambda: nn.Linear(width, 3 * width),
            {"target_modules": ["layer"]},
            lambda: (torch.randn(tokens, width),),
            {"enable_lora": {"layer": (True, False, True)}},
        ),
        Layer(
            f"nn.Conv2d {width // 4} to {width // 2}, 3 x 3, {size} x {size}",
            lambda: nn.Conv2d(width // 4, width // 2, 3, padding=1),
            {"target_modules": ["layer"]},
            lambda: (torch.randn(4, width // 4, size, size),),
        ),
        Layer(
            f"experts {width} to {width}, 8 of them, 2 for a token",
            lambda: experts(width, width, 8),
            {"target_modules": [], "target_parameters": ["layer.gate_up_proj", "layer.down_proj"]},
            lambda: routed(tokens, width, 8),
        ),
        Layer(
            f"nn.MultiheadAttention {width}, {width // 16} heads",
            lambda: nn.MultiheadAttention(width, width // 16, batch_first=True),
            {"target_modules": ["layer"]},
            lambda: (torch.randn(4, tokens // 4, width),) * 3,
        ),
    )


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("layer_kinds", __doc__, arguments)
    rows = []
    for layer in layers(options.quick):
        print(layer.name, flush=True)
        rows += measure(options, layer)
    return rows


def measure(options: Options, layer: Layer) -> list[Row]:
    """Measure one kind of layer."""
    r = options.r or 8
    torch.manual_seed(0)
    base = Holder(layer.build()).to(options.device)
    inputs = tuple(tensor.to(options.device) for tensor in layer.inputs())
    samples = {
        name: _sample(model, inputs)
        for name, model in variants(base, layer, r, options.device).items()
    }
    common: dict[str, Any] = {"benchmark": "layer_kinds", "shape": layer.name, "r": r}
    return options.keep(options.compared_laps(samples, (FORWARD_BACKWARD,), (LIMIT,), **common))


def variants(base: nn.Module, layer: Layer, r: int, device: str) -> dict[str, nn.Module]:
    """Return the same layer frozen, and with updates by each tool that knows its kind."""
    settings = {"r": r, "lora_alpha": 2 * r, **layer.config}
    found = {LIMIT: copy.deepcopy(base).requires_grad_(False)}
    found[LORAKIT] = _adapted(base, settings | (layer.ours or {}))
    if layer.ours is not None:
        found[WHOLE] = _adapted(base, settings)
    if layer.ours is not None and why_not(LORALIB, torch.float32, device) is None:
        found[LORALIB] = _merged_linear(base, settings, layer.ours["enable_lora"]["layer"])
    if layer.ours is None and why_not(PEFT, torch.float32, device) is None:
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[PEFT] = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
    return found


def _adapted(base: nn.Module, settings: dict[str, Any]) -> nn.Module:
    model = copy.deepcopy(base)
    lorakit.add_adapter(model, lorakit.LoraConfig(**settings))
    return model


def _merged_linear(base: Any, settings: dict[str, Any], parts: Sequence[bool]) -> nn.Module:
    import loralib

    plain = base.layer
    made = loralib.MergedLinear(
        plain.in_features,
        plain.out_features,
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        enable_lora=list(parts),
    )
    made.load_state_dict(plain.state_dict(), strict=False)
    made.bias.requires_grad_(False)
    return Holder(made).to(plain.weight.device)


def _sample(model: nn.Module, inputs: Arguments) -> Sample:
    first = inputs[0].clone().requires_grad_()
    given = tuple(first if tensor is inputs[0] else tensor for tensor in inputs)
    gradient = torch.randn_like(model.train()(*given))

    def sample(watch: Stopwatch) -> None:
        model.zero_grad(set_to_none=True)
        first.grad = None
        watch.start()
        model(*given).backward(gradient)
        watch.lap(FORWARD_BACKWARD)

    return sample


if __name__ == "__main__":
    main()
