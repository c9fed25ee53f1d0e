"""The operations of the table: each done by PEFT and by lorakit, to outputs that must be equal."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import lorakit
from oracle.features import FEATURES, Feature
from oracle.models import KINDS, ROWS, Kind
from tiny_models import randomize_

R, ALPHA = 4, 6
LEARNING_RATE = 0.05
SCALE = 0.2
"""Standard deviation of what is trained: large enough to move outputs, small enough to be exact."""
NAMES_OF_ROWS = ["default", None, "default", None][:ROWS]
WEIGHTS = {"default": 0.7, "second": 0.4}


class Case:
    """One kind of model with one feature, carried by both tools with the same numbers."""

    def __init__(self, kind: str, feature: str, directory: Path, *, peft_cannot: bool = False):
        self.kind: Kind = KINDS[kind]
        self.feature: Feature = FEATURES[feature]
        self.starts_itself = self.feature.starts_itself or peft_cannot
        feature_options = self.feature.options(self.kind)
        if feature_options is None:
            raise ValueError(f"{feature} makes no sense for {kind}")
        self.options: dict[str, Any] = {
            "r": R,
            "lora_alpha": ALPHA,
            **self.kind.options,
            **feature_options,
        }
        self.directory = directory

    @cached_property
    def original_base(self) -> nn.Module:
        """The model without an adapter, to read only; made once, as that takes longest."""
        return self.kind.build()

    def base(self) -> nn.Module:
        """Return a copy of the model without an adapter."""
        return _copied(self.original_base)

    def fresh_theirs(self, seed: int = 3) -> nn.Module:
        """Return PEFT's model with random numbers in everything that is trained."""
        torch.manual_seed(0)
        config = peft.LoraConfig(**self.options)
        model = peft.get_peft_model(self.base(), config)
        return randomize_(model, seed=seed, scale=SCALE).eval()

    def fresh_ours(self, seed: int = 3) -> nn.Module:
        """Return lorakit's model with random numbers, and the names of what PEFT would train."""
        model = self.base()
        options = dict(self._our_options)
        # PEFT leaves the head of a task frozen unless it is named.
        if self._unnamed_heads:
            options["exclude_modules"] = self._unnamed_heads
        lorakit.add_adapter(model, lorakit.LoraConfig(**options))
        return randomize_(model, seed=seed, scale=SCALE).eval()

    @property
    def _our_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.options.items() if key != "fan_in_fan_out"}

    @cached_property
    def _unnamed_heads(self) -> list[str]:
        found = lorakit.add_adapter(self.base(), lorakit.LoraConfig(**self._our_options)).heads
        return [head for head in found if head not in self.options.get("modules_to_save", ())]

    @cached_property
    def original_theirs(self) -> nn.Module:
        """PEFT's model, to read only."""
        return self.fresh_theirs()

    @cached_property
    def their_file(self) -> Path:
        """The directory of the adapter saved by PEFT."""
        self.original_theirs.save_pretrained(self.directory / "theirs")
        return self.directory / "theirs"

    @cached_property
    def our_file(self) -> Path:
        """The directory of the adapter saved by lorakit."""
        lorakit.save_adapter(self.original_ours, self.directory / "ours")
        return self.directory / "ours"

    @cached_property
    def original_ours(self) -> nn.Module:
        """lorakit's model with the numbers of PEFT's file, or the same ones drawn again.

        To read only.
        """
        if self.starts_itself:
            return self.fresh_ours()
        model = self.base()
        lorakit.load_adapter(model, self.their_file, trainable=True)
        return model.eval()

    @cached_property
    def their_second_file(self) -> Path:
        """The directory of another adapter of the same configuration, saved by PEFT."""
        self.fresh_theirs(seed=9).save_pretrained(self.directory / "second")
        return self.directory / "second"

    @cached_property
    def second(self) -> lorakit.Adapter:
        """Another adapter with the same configuration and other numbers."""
        if self.starts_itself:
            return lorakit.Adapter.from_model(self.fresh_ours(seed=9))
        return lorakit.Adapter.load(self.their_second_file)

    @property
    def theirs(self) -> nn.Module:
        """A copy of PEFT's model."""
        return _copied(self.original_theirs)

    @property
    def ours(self) -> nn.Module:
        """A copy of lorakit's model."""
        return _copied(self.original_ours)


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model; it takes half the time that `copy` needs alone.

    Each module has a dozen dictionaries for hooks. `copy` takes each empty one apart.
    """
    empty = {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict) and not value
    }
    return copy.deepcopy(model, empty)


@dataclass(frozen=True)
class Operation:
    """What is done to an adapted model, by either tool, and returns outputs.

    Attributes:
        title: As docs/adapters.md names it.
        theirs: Done with PEFT.
        on: Done with lorakit, on a model of the case.
        only_reads: Whether it leaves the model as it was, and so needs no copy.
    """

    title: str
    theirs: Callable[[Case], Tensor]
    on: Callable[[Case, nn.Module], Tensor]
    only_reads: bool = False

    def ours(self, case: Case) -> Tensor:
        """Return the outputs of lorakit's model."""
        return self.on(case, case.original_ours if self.only_reads else case.ours)


def loss_of(outputs: Tensor) -> Tensor:
    """Return a loss whose gradients are of the same size whatever that of the outputs is."""
    return outputs.square().mean().log()


def _stepped(kind: Kind, model: nn.Module) -> Tensor:
    """Return the outputs after one step of plain gradient descent."""
    before = kind.output(model).detach()
    loss_of(kind.output(model)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.requires_grad:
                parameter.sub_(LEARNING_RATE * parameter.grad)
    after = kind.output(model).detach()
    return torch.cat([before, after, after - before])


def _their_unmerged(case: Case) -> Tensor:
    model = case.theirs
    model.merge_adapter()
    model.unmerge_adapter()
    return case.kind.output(model)


def _our_unmerged(case: Case, model: nn.Module) -> Tensor:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lorakit.merge_adapters(model)
    lorakit.unmerge_adapters(model)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            raise ValueError(f"{name} is not what it was before merging")
    return case.kind.output(model)


def _our_rows(case: Case, model: nn.Module) -> Tensor:
    with lorakit.adapter_rows(model, NAMES_OF_ROWS):
        return case.kind.output(model)


def _their_base(case: Case) -> Tensor:
    model = case.theirs
    with model.disable_adapter():
        return case.kind.output(model)


def _our_base(case: Case, model: nn.Module) -> Tensor:
    with lorakit.disable_adapters(model):
        return case.kind.output(model)


def _reloaded_theirs(case: Case) -> Tensor:
    return case.kind.output(peft.PeftModel.from_pretrained(case.base(), case.our_file).eval())


def _reloaded_ours(case: Case, model: nn.Module) -> Tensor:
    model = case.base()
    lorakit.load_adapter(model, case.their_file)
    return case.kind.output(model.eval())


def _their_combination(case: Case) -> Tensor:
    model = case.theirs
    model.load_adapter(case.their_second_file, "second")
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    model.add_weighted_adapter(names, weights, "both", combination_type="cat")
    model.set_adapter("both")
    return case.kind.output(model.eval())


def _our_combination(case: Case, model: nn.Module) -> Tensor:
    lorakit.add_adapter(model, case.second, "second")
    lorakit.combine_adapters(model, WEIGHTS, "both", method="cat")
    lorakit.set_adapter(model, "both")
    return case.kind.output(model.eval())


OPERATIONS = {
    "outputs": Operation(
        "forward",
        lambda c: c.kind.output(c.original_theirs),
        lambda c, model: c.kind.output(model),
        only_reads=True,
    ),
    "gradients": Operation(
        "step", lambda c: _stepped(c.kind, c.theirs), lambda c, model: _stepped(c.kind, model)
    ),
    "saved": Operation(
        "file to PEFT", _reloaded_theirs, lambda c, model: c.kind.output(model), only_reads=True
    ),
    "loaded": Operation(
        "file from PEFT",
        lambda c: c.kind.output(c.original_theirs),
        _reloaded_ours,
        only_reads=True,
    ),
    "merged": Operation(
        "merge",
        lambda c: c.kind.output(c.theirs.merge_and_unload()),
        lambda c, model: c.kind.output(lorakit.merge_and_unload(model)),
    ),
    "unmerged": Operation("unmerge", _their_unmerged, _our_unmerged),
    "rows": Operation(
        "mixed rows",
        lambda c: c.kind.output(
            c.theirs, adapter_names=[name or "__base__" for name in NAMES_OF_ROWS]
        ),
        _our_rows,
    ),
    "off": Operation("off", _their_base, _our_base),
    "combined": Operation("combine", _their_combination, _our_combination),
}
