"""A whole model trains on a GPU as it does on the CPU, with dropout too: one seed, one mask.

tests/unit/ops/triton/test_triton_kernels.py runs this file in Triton's interpreter, on a CPU.
"""

import os

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("there is no CUDA GPU", allow_module_level=True)

from lorakit import LoraConfig, add_adapter  # noqa: E402
from lorakit.ops import LinearOperands, LowRankTerm, draw_seed, low_rank_linears  # noqa: E402
from lorakit.ops.triton import gpu_kernels  # noqa: E402
from tiny_models import llama, randomize_, tokens  # noqa: E402
from tolerances import largest_error  # noqa: E402

DEVICE = torch.device("cpu") if IS_INTERPRETED else torch.device("cuda", 0)
STEPS = 2
# Two layers of sums in another order; in bfloat16 each of a dozen activations on the way to the
# first gradient rounds by 2**-8.
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
FIRST_GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


def train(device, dtype, dropout):
    """Return the losses of a few steps and the gradients of the first."""
    model = llama().to(dtype)
    add_adapter(model, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"))
    randomize_(model, scale=0.1).to(device).train()
    inputs = {name: ids.to(device) for name, ids in tokens(model).items()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    torch.manual_seed(3)
    losses, gradients = [], {}
    for _ in range(STEPS):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        gradients = gradients or {n: p.grad.cpu() for n, p in trained.items()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients


@pytest.mark.parametrize(
    ("products", "dropout"),
    [("triton", 0.3)] + [("torch", 0.0), ("torch", 0.3)] * (not IS_INTERPRETED),
)
@pytest.mark.parametrize("dtype", LOSS_TOLERANCE, ids=str)
def test_losses_and_gradients_are_those_of_the_cpu(
    dtype, products, dropout, use_triton, monkeypatch
):
    expected_losses, expected = train(torch.device("cpu"), dtype, dropout)
    if products == "triton":
        use_triton()
    else:
        monkeypatch.setattr(gpu_kernels, "takes", lambda x: False)
    losses, gradients = train(DEVICE, dtype, dropout)
    assert losses == pytest.approx(expected_losses, rel=LOSS_TOLERANCE[dtype])
    assert losses[-1] < losses[0]
    assert list(gradients) == list(expected) and gradients
    for name, gradient in expected.items():
        assert largest_error(gradients[name], gradient) < FIRST_GRADIENT_TOLERANCE[dtype], name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # it is a prototype
@pytest.mark.parametrize("products", ["triton", "torch"])
def test_a_layer_does_not_wait_for_the_gpu(products, use_triton, monkeypatch):
    if products == "triton":
        use_triton()
    else:
        monkeypatch.setattr(gpu_kernels, "takes", lambda x: False)
    x, W0 = (torch.randn(*shape, device=DEVICE) for shape in ((40, 64), (48, 64)))
    A, B = (torch.randn(*shape, device=DEVICE) for shape in ((4, 64), (48, 4)))
    leaves = [leaf.requires_grad_() for leaf in (x, A, B)]

    def step():
        term = LowRankTerm(A, B, 1.0, 0.3, draw_seed())
        low_rank_linears(x, [LinearOperands(W0, None, [term])])[0].sum().backward()

    step()  # what is compiled and loaded at the first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(leaf.grad is not None for leaf in leaves)
