"""Stacked batches have the masks, and so the outputs and gradients, that each has alone."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, adapter_rows, add_adapter, set_adapter
from lorakit.errors import AdapterStateError
from lorakit.layers.executors.separate_batches import SeparateBatches
from lorakit.ops import draw_seed
from lorakit.ops.native import cpu_kernels

SIZES = {"one": (2, 3), "other": (1, 5)}


class Block(nn.Module):
    """Two siblings and a layer behind them."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.o_proj(torch.tanh(self.q_proj(x)) * self.k_proj(x))


@pytest.fixture(params=["compiled", "torch"])
def products(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(cpu_kernels, "load", lambda: None)
    return request.param


def block():
    torch.manual_seed(0)
    model = Block()
    for number, name in enumerate(SIZES):
        config = LoraConfig(
            r=2 + number,
            lora_dropout=0.3 + 0.2 * number,
            target_modules=["q_proj", "k_proj", "o_proj"],
        )
        add_adapter(model, config, name)
        with torch.no_grad():
            for parameter in (p for n, p in model.named_parameters() if f"{name}.lora_B" in n):
                parameter.normal_()
    return model.train()


def gradients(model, name):
    return [p.grad.clone() for n, p in model.named_parameters() if f".{name}." in n]


def test_outputs_and_gradients_are_those_of_each_batch_alone(products):
    model = block()
    inputs = {name: torch.randn(*size, 8) for name, size in SIZES.items()}
    alone = {}
    for seed, (name, x) in enumerate(inputs.items()):
        set_adapter(model, name)
        torch.manual_seed(seed)
        h = model(x)
        h.square().sum().backward()
        alone[name] = h.detach(), gradients(model, name), draw_seed()
    model.zero_grad()
    generators = {name: torch.Generator().manual_seed(n) for n, name in enumerate(SIZES)}
    ours = [tokens for rows, tokens in SIZES.values() for _ in range(rows)]
    batches = SeparateBatches(ours, lambda name: draw_seed(generators[name]))
    longest = max(ours)
    x = torch.cat(
        [nn.functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in inputs.values()]
    )
    with adapter_rows(model, ["one", "one", "other"], batches=batches):
        h = model(x)
    sum(part.square().sum() for part in (h[:2, :3], h[2:])).backward()
    for name, part in (("one", h[:2, :3]), ("other", h[2:])):
        output, expected, after = alone[name]
        torch.testing.assert_close(part.detach(), output, rtol=1e-5, atol=1e-5)
        for got, wanted in zip(gradients(model, name), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert draw_seed(generators[name]) == after, "as many seeds are drawn as alone"


def test_checkpointing_finds_the_masks_of_the_first_pass():
    from torch.utils.checkpoint import checkpoint

    model = block()
    x = torch.randn(3, 5, 8)
    found = []
    for again in (False, True):
        model.zero_grad()
        generators = {name: torch.Generator().manual_seed(n) for n, name in enumerate(SIZES)}
        batches = SeparateBatches([5] * 3, lambda name, g=generators: draw_seed(g[name]))
        with adapter_rows(model, ["one", "one", "other"], batches=batches):
            h = checkpoint(model, x, use_reentrant=False) if again else model(x)
            h.square().sum().backward()
        found.append([gradients(model, name) for name in SIZES])
    for first, second in zip(found[0] + found[1], found[1] + found[0], strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_layer_called_twice_cannot_be_repeated():
    from torch.utils.checkpoint import checkpoint

    model = block()
    generator = torch.Generator()
    batches = SeparateBatches([5] * 3, lambda name: draw_seed(generator))
    x = torch.randn(3, 5, 8)
    with adapter_rows(model, ["one", "one", "other"], batches=batches):
        h = checkpoint(lambda x: model(model(x)), x, use_reentrant=False)
        with pytest.raises(AdapterStateError, match="a layer that was called 2 times"):
            h.sum().backward()
