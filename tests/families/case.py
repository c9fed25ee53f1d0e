"""A family's model, with and without an adapter, and what the checks share."""

import copy
import warnings
from functools import cached_property
from pathlib import Path

import torch
from tests.families.exceptions import CONVOLUTIONAL
from tests.families.models import inputs_of, outputs_of, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorakit
from lorakit.errors import LorakitWarning

R, ALPHA = 4, 6
SCALE = 0.1


class NotComparedError(Exception):
    """There is nothing to compare with: the base alone, or PEFT alone, does not pass."""


class Case:
    """A family's model, and what the checks share."""

    def __init__(self, family: str, directory: Path):
        self.family = family
        self.directory = directory
        self.unreached = 0
        self.said: list[str] = []
        self.base = tiny_model(family)
        self.targets: str | list[str] = "all-linear"
        if family in CONVOLUTIONAL:
            modules = self.base.named_modules()
            self.targets = [path for path, one in modules if _is_plain_convolution(one)]
        self.inputs = inputs_of(family, self.base)
        with torch.no_grad():
            self.expected = self.outputs(self.base)
        if not self.expected or not all(t.isfinite().any() for t in self.expected):
            raise NotComparedError("the base gives no finite output")

    @property
    def config(self) -> lorakit.LoraConfig:
        """The configuration of the adapter."""
        return lorakit.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=self.targets)

    def fresh(self) -> PreTrainedModel:
        """Return another model with the weights of the base."""
        return copy.deepcopy(self.base)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """Return the output tensors of a model."""
        return outputs_of(model, self.inputs)

    def evaluated(self, model: nn.Module) -> list[Tensor]:
        """Return the output tensors of a model in eval mode, without a graph."""
        with torch.no_grad():
            return self.outputs(model.eval())

    def loss(self, model: nn.Module) -> Tensor:
        """Return a loss that depends on every output."""
        generator = torch.Generator().manual_seed(4)
        parts = []
        for tensor in self.outputs(model):
            kept = torch.where(tensor.isfinite(), tensor, torch.zeros_like(tensor))
            parts.append((kept * torch.randn(tensor.shape, generator=generator)).mean())
        return torch.stack(parts).sum()

    @cached_property
    def adapted(self) -> PreTrainedModel:
        """The model with a random adapter on all linear layers."""
        model = self.fresh()
        lorakit.add_adapter(model, self.config)
        randomize(model)
        return model

    def copied(self) -> PreTrainedModel:
        """Return a copy of the adapted model, after a pass that leaves no graph in it."""
        self.evaluated(self.adapted)
        return copy.deepcopy(self.adapted)

    @cached_property
    def adapted_outputs(self) -> list[Tensor]:
        """The outputs of the adapted model."""
        return self.evaluated(self.adapted)

    @cached_property
    def file(self) -> Path:
        """The directory of the adapter saved by lorakit."""
        path = self.directory / "lorakit"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", LorakitWarning)
            lorakit.save_adapter(self.adapted, path)
        self.said = [str(one.message) for one in said if one.category is LorakitWarning]
        return path


def _is_plain_convolution(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and type(module) in (nn.Conv1d, nn.Conv2d)
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= R
    )


def randomize(model: nn.Module) -> None:
    """Give every trainable parameter random values, the same for the same names."""
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * SCALE
