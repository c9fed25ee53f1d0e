"""torch.compile of a model with adapters on a quantized base: one graph, and equal results."""

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from tiny_models import TinyNet, randomize_
from tiny_models.quantized import EIGHT, FOUR, quantized
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

# torch 2.13's own tracer makes an instance of the autograd function it traces.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning"
)


@pytest.mark.parametrize("settings", [FOUR, EIGHT], ids=["4 bits", "8 bits"])
@pytest.mark.parametrize("targets", [["up", "down"], ["up"]], ids=str)
def test_forward_and_backward_are_one_graph_each(settings, targets):
    model = quantized(TinyNet(width=16), **settings).train()
    add_adapter(model, LoraConfig(r=2, target_modules=targets))
    randomize_(model)
    ids = torch.tensor([[1, 2, 3]])
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = model(ids)
    gradients = torch.autograd.grad(expected.square().sum(), trained)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(ids)
    assert largest_error(got, expected) <= 4 * TOLERANCE[torch.float32]
    for one, other in zip(torch.autograd.grad(got.square().sum(), trained), gradients, strict=True):
        assert largest_error(one, other) <= 4 * GRADIENT_TOLERANCE[torch.float32]
