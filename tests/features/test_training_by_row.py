"""Several adapters that train in one batch, each on its rows."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fixtures.mixed_batches import NAMES, batch, picked, with_three
from lorakit import LoraConfig, adapter_rows, add_adapter, set_adapter
from lorakit.errors import AdapterStateError
from tiny_models import TinyNet, bert, gpt2, llama, randomize_, t5
from tolerances import largest_error


def train_gradients(model, inputs, names, dropout_seed=3):
    model.zero_grad()
    torch.manual_seed(dropout_seed)
    with adapter_rows(model, names):
        out = model(**inputs).logits
        out.square().mean(dim=tuple(range(1, out.ndim))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [llama, gpt2, bert, t5])
def test_gradients_are_those_of_each_adapter_s_rows(build):
    model = with_three(build, target_modules="all-linear")
    inputs = batch(model, len(NAMES))
    got = train_gradients(model, inputs, NAMES)
    for name in "abc":
        set_adapter(model, name)
        model.zero_grad()
        out = model(**picked(inputs, [row for row, one in enumerate(NAMES) if one == name])).logits
        out.square().mean(dim=tuple(range(1, out.ndim))).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert gradients and all(f".{name}." in key for key in gradients)
        for key, gradient in gradients.items():
            assert largest_error(got[key], gradient) < 1e-4, key
    assert len(got) == sum(f".{name}." in key for name in "abc" for key in got)


def test_one_optimizer_trains_several_adapters_in_one_batch():
    model = with_three(llama, target_modules=["q_proj", "v_proj"])
    inputs = batch(model, 4)
    names = ["a", "b", None, "a"]
    with adapter_rows(model, names):
        pass
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 3 * 8  # a, b and the active c have A and B of q and v in two blocks
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    train_gradients(model, inputs, names)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".a." in n or ".b." in n for n in changed)
    set_adapter(model, "c")
    assert all(".c." in n for n, p in model.named_parameters() if p.requires_grad)


def test_adapters_loaded_for_use_alone_get_no_gradients():
    model = llama()
    add_adapter(model, LoraConfig(r=1), "a", trainable=False)
    add_adapter(model, LoraConfig(r=1), "b")
    randomize_(model)
    gradients = train_gradients(model, batch(model, 2), ["a", "b"])
    assert gradients and all(".b." in key for key in gradients)


def test_dropout_acts_in_training_and_repeats_under_a_seed():
    model = with_three(llama, lora_dropout=0.5).train()
    inputs = batch(model, len(NAMES))
    first, again = (train_gradients(model, inputs, NAMES) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = train_gradients(model, inputs, NAMES, dropout_seed=4)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing_inside_the_block(reentrant):
    model = with_three(llama, lora_dropout=0.3).train()
    inputs = batch(model, len(NAMES))
    expected = train_gradients(model, inputs, NAMES)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    got = train_gradients(model, inputs, NAMES)
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        assert largest_error(got[key], gradient) < 1e-5, key


def test_a_checkpointed_backward_outside_the_block_is_refused():
    net = TinyNet()
    add_adapter(net, LoraConfig(r=2, target_modules=["up"]), "a")
    up = net.layers[0]["up"]
    x = torch.randn(2, 8, requires_grad=True)
    with adapter_rows(net, ["a", None]):
        h = checkpoint(up, x, use_reentrant=False)
    with pytest.raises(AdapterStateError) as caught:
        h.sum().backward()
    assert str(caught.value) == (
        "Gradient checkpointing runs a layer again after the adapter_rows block it belongs to, "
        "expected backward inside the block. Call loss.backward() before leaving it."
    )
    assert up(x).shape == (2, 16)
