"""What follows from the mathematics, computed with lorakit's own layers: C10, C13, C14 and C16."""

import torch
from torch import Tensor, nn

import lorakit
from benchmarks.claims.records import claim_row
from benchmarks.models import count_weights
from benchmarks.options import Options
from benchmarks.results import Row
from lorakit import LoraConfig, QuantizationConfig
from lorakit.analysis.spectrum import product_svd
from lorakit.analysis.subspace import random_directions
from lorakit.injection.state import adapted_layers
from lorakit.layers.bitsandbytes_storage import bits_of, storage_bytes
from lorakit.quantization.arithmetic import absmax_int8, blockwise_int8

KEPT_RANK = 8
RANDOM_DRAWS = 100


def compute(options: Options) -> list[Row]:
    """Compute all; takes seconds."""
    rows = [*_gradients(options), *_storage(options), *_int8(options), *_truncation(options)]
    return options.keep(rows)


@torch.enable_grad()
def _gradients(options: Options) -> list[Row]:
    """Compare the layer's backward with ∂L/∂B = s (∂L/∂h)ᵀ (x Aᵀ) and ∂L/∂A = s Bᵀ (∂L/∂h)ᵀ x.

    Rows of x and ∂L/∂h are tokens here, columns in the paper.
    """
    out, width, r, tokens, s = 48, 64, 6, 96, 10 / 6
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, out)).double()
    lorakit.add_adapter(model, LoraConfig(r=r, lora_alpha=10, target_modules=["0"]))
    [(_, layer)] = adapted_layers(model)
    [update] = layer.updates.values()
    A, B = update.lora_A, update.lora_B
    with torch.no_grad():
        A.normal_()
        B.normal_()
    x, of_output = (torch.randn(tokens, size, dtype=torch.float64) for size in (width, out))
    model(x).backward(of_output)
    closed = {"B": s * of_output.T @ (x @ A.T), "A": s * B.T @ of_output.T @ x}
    errors = {"B": _largest_error(B.grad, closed["B"]), "A": _largest_error(A.grad, closed["A"])}
    common = {"shape": f"{out} × {width}", "setting": f"{tokens} tokens", "r": r}
    return [
        claim_row(options, "C10", f"∂L/∂{name}", error, "", dtype=torch.float64, **common)
        for name, error in errors.items()
    ]


def _largest_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference beside the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _storage(options: Options) -> list[Row]:
    """Count the bits that a parameter takes in a layer that bitsandbytes has quantized."""
    width = 4096  # of fewer parameters the code books are a larger part
    rows, bits = [], {}
    for double_quant in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, width, bias=False))
        parameters = count_weights(model)
        config = QuantizationConfig(bits=4, double_quant=double_quant, compute_dtype="float32")
        lorakit.quantize_model(model, config)
        layers = [module for module in model.modules() if bits_of(module)]
        bits[double_quant] = 8 * storage_bytes(layers) / parameters
    shape = f"{width} × {width}"
    for what, value in (
        ("the scales, one level", bits[False] - 4),
        ("the scales, double quantization", bits[True] - 4),
        ("all, double quantization", bits[True]),
    ):
        rows.append(claim_row(options, "C13", what, value, "bits", shape=shape))
    return rows


def _int8(options: Options) -> list[Row]:
    codes, c = absmax_int8(torch.tensor([-1024.0, 5.0, 2048.0, 256.0]))
    off = (codes.long() - torch.tensor([-64, 0, 127, 16])).abs().max().item()
    outlier = torch.tensor([0.0, 100.0, 100000.0, 100000.0])
    whole, its_c = absmax_int8(outlier)
    blocks, their_c = blockwise_int8(outlier, 2)
    return [
        claim_row(options, "C14", what, value, "", shape=shape)
        for what, value, shape in (
            ("c = 127 / largest number", c, "4 numbers"),
            ("codes, largest difference", off, "4 numbers"),
            ("100 beside 100,000, one scale", whole[1].item() / its_c, "4 numbers"),
            ("100 beside 100,000, a scale for each block", blocks[1].item() / their_c[0].item(),
             "blocks of 2"),
        )
    ]  # fmt: skip


def _truncation(options: Options) -> list[Row]:
    """Cut a weight of the quickstart's base to a rank, by its singular values and at random."""
    W0 = _a_trained_weight()
    out, width = W0.shape
    left, values, right = product_svd(torch.eye(width, dtype=torch.float64), W0)
    k = KEPT_RANK
    error = (W0 - (left[:, :k] * values[:k]) @ right[:k]).norm().item()
    tail = values[k:].square().sum().sqrt().item()
    generator = torch.Generator().manual_seed(0)
    by_chance = []
    for _ in range(2 if options.quick else RANDOM_DRAWS):
        directions = random_directions(width, k, generator)
        # The best factor B for a random A: what W0 has along A's directions.
        by_chance.append((W0 - W0 @ directions @ directions.T).norm().item() / tail)
    stored = 100 * (out + width) * k / (out * width)
    common = {"shape": f"{out} × {width}", "setting": "query of the first layer", "r": k}
    return [
        claim_row(options, "C16", "error of the cut SVD / tail of the spectrum", error / tail, "",
                  dtype=torch.float64, **common),
        claim_row(options, "C16", "error of random factors / tail of the spectrum", by_chance, "",
                  dtype=torch.float64, **common),
        claim_row(options, "C16", "numbers stored, of all", stored, "%", **common),
    ]  # fmt: skip


def _a_trained_weight() -> Tensor:
    from safetensors import safe_open

    from lorakit.quickstart.model_files import base_model_path

    with safe_open(base_model_path() / "model.safetensors", "pt") as weights:
        return weights.get_tensor("model.layers.0.self_attn.q_proj.weight").double()
