"""QLoRA on a GPU: the same numbers as on a dense base, 4.13 bits a parameter, paged optimizers."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA GPU", allow_module_level=True)

from lorakit import LoraConfig, QuantizationConfig, add_adapter, quantize_model
from lorakit.layers.bitsandbytes_storage import bits_of, storage_bytes
from tiny_models import llama, randomize_, tokens
from tiny_models.quantized import dense_twin
from tolerances import largest_error

CUDA = torch.device("cuda", 0)
# The dense twin rounds each dequantized weight as the node does; products differ in their order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}


def on_cuda(bits, compute_dtype, **options):
    model = llama(**options).to(CUDA, getattr(torch, compute_dtype))
    return quantize_model(model, QuantizationConfig(bits=bits, compute_dtype=compute_dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("compute_dtype", TOLERANCE)
def test_a_step_is_that_on_the_dense_weights(bits, compute_dtype):
    model = on_cuda(bits, compute_dtype)
    twin = dense_twin(model, getattr(torch, compute_dtype))
    gradients = []
    for each in (model, twin):
        add_adapter(each, LoraConfig(r=4))
        randomize_(each, scale=0.1)
        inputs = {name: ids.to(CUDA) for name, ids in tokens(each).items()}
        each.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([p.grad for p in each.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert largest_error(one, other) <= TOLERANCE[compute_dtype]


def test_bytes_are_counted_where_they_are():
    model = on_cuda(4, "bfloat16", hidden_size=512, intermediate_size=1024)
    layers = [module for module in model.modules() if bits_of(module)]
    count = sum(layer.in_features * layer.out_features for layer in layers)
    assert 8 * storage_bytes(layers) / count == pytest.approx(4.13, abs=0.02)


@pytest.mark.parametrize("name", ["PagedAdamW32bit", "PagedAdamW8bit"])
def test_paged_optimizers_take_steps(name):
    from bitsandbytes import optim

    model = on_cuda(4, "bfloat16").train()
    add_adapter(model, LoraConfig(r=4))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(optim, name)(trained, lr=1e-2)
    inputs = {name: ids.to(CUDA) for name, ids in tokens(model).items()}
    losses = []
    for _ in range(5):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
