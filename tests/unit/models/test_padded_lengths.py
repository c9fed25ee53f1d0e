"""What the lengths of batches are multiples of, for models in different dtypes."""

import pytest
import torch
from torch import nn

from lorakit.models.padded_lengths import length_multiple
from tiny_models.architectures import bert, t5


def model_in(dtype, positions=64):
    return bert(max_position_embeddings=positions).to(dtype)


def test_products_in_bfloat16_have_few_lengths():
    assert length_multiple(model_in(torch.bfloat16)) == 32
    assert length_multiple(model_in(torch.float32), autocasts=True) == 32
    assert length_multiple(t5().to(torch.bfloat16)) == 32  # has no longest input


def test_float32_and_other_devices_take_any_length():
    assert length_multiple(model_in(torch.float32)) is None
    assert length_multiple(model_in(torch.bfloat16).to("meta")) is None


@pytest.mark.parametrize(("positions", "multiple"), [(40, 8), (510, 2), (77, None)])
def test_padding_never_exceeds_the_positions(positions, multiple):
    assert length_multiple(model_in(torch.bfloat16, positions)) == multiple


def test_weights_in_four_bits_count_as_what_they_are_computed_in():
    model = model_in(torch.float32)
    model.quantized = nn.Module()
    model.quantized.compute_dtype = torch.bfloat16
    assert length_multiple(model) == 32
    model.quantized.compute_dtype = torch.float32
    assert length_multiple(model) is None
