"""What transformers and TRL do to quantised bases is kept from an adapted one."""

from types import SimpleNamespace

import pytest

from lorakit.training.trainers.quantized_base import hiding_quantization, marking_as_adapted


def test_trl_does_not_see_that_a_base_is_quantized():
    model = SimpleNamespace(is_loaded_in_4bit=True, other=1)
    with pytest.raises(ZeroDivisionError), hiding_quantization(model):
        assert vars(model) == {"other": 1}
        raise ZeroDivisionError
    assert vars(model) == {"is_loaded_in_4bit": True, "other": 1}


@pytest.mark.parametrize("is_quantized", [True, False])
def test_only_a_quantized_base_is_marked_and_only_for_a_while(is_quantized):
    model = SimpleNamespace(is_quantized=is_quantized)
    with pytest.raises(ZeroDivisionError), marking_as_adapted(model):
        assert hasattr(model, "_hf_peft_config_loaded") == is_quantized
        raise ZeroDivisionError
    assert vars(model) == {"is_quantized": is_quantized}
