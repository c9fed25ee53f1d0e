"""What injection reads of an adapter that has tensors."""

from dataclasses import make_dataclass

import torch

from lorakit import Adapter, add_adapter
from lorakit.injection.selection.sites import AdapterTensors
from tiny_models import distilbert, logits
from tiny_models.adapted import with_adapter

READ = [name for name, value in vars(AdapterTensors).items() if isinstance(value, property)]


def test_any_value_with_these_members_is_an_adapter():
    model = with_adapter(distilbert, use_dora=True, bias="all")
    adapter, other = Adapter.from_model(model), distilbert()
    renaming = {"in_names_of": lambda self, model: self}
    made = make_dataclass("Value", READ, namespace=renaming)
    value = made(*(getattr(adapter, name) for name in READ))
    add_adapter(other, value)
    assert torch.equal(logits(other), logits(model))
