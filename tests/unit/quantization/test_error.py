"""What quantizing costs the weights of a model."""

import pytest
import torch

from lorakit.errors import QuantizationError
from lorakit.quantization.error import SCHEMES, measure_weight, quantization_errors
from tiny_models import gpt2, llama, snapshot
from tiny_models.quantized import quantized


def test_every_linear_but_the_head_is_measured_under_every_scheme():
    model = llama()
    before = snapshot(model)["values"]
    errors = list(quantization_errors(model))
    paths = list(dict.fromkeys(error.path for error in errors))
    assert len(paths) == 14 and "lm_head" not in paths
    assert len(errors) == 14 * len(SCHEMES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_figures_are_those_of_the_difference():
    weight = torch.randn(64, 128)
    for scheme in SCHEMES[:4]:
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(
            weight, quant_type=scheme.quant_type, compress_statistics=scheme.double_quant
        )
        difference = weight - functional.dequantize_4bit(codes, state)
        error = measure_weight("w", weight, scheme)
        assert error.relative == pytest.approx((difference.norm() / weight.norm()).item())
        assert error.largest == difference.abs().max().item()
        assert (error.out_features, error.in_features) == (64, 128)


def test_normal_weights_suit_nf4_better_than_fp4_and_8_bits_best():
    weight = torch.randn(256, 256)
    found = {scheme.name: measure_weight("w", weight, scheme).relative for scheme in SCHEMES}
    assert found["int8"] < found["nf4"] <= found["nf4, double"] * 1.001
    assert found["nf4, double"] < found["fp4"]


def test_gpt2_is_measured_as_out_times_in_and_a_weight_of_zeros_has_no_error():
    errors = list(quantization_errors(gpt2()))
    fused = next(error for error in errors if error.path.endswith("c_attn"))
    assert (fused.out_features, fused.in_features) == (48, 16)
    assert measure_weight("w", torch.zeros(8, 64), SCHEMES[0]).relative == 0


def test_a_quantized_model_is_refused():
    with pytest.raises(QuantizationError, match="quantized already, expected a dense weight"):
        list(quantization_errors(quantized(llama())))
