"""Plans of recipes whose adapter begins at numbers that a plan does not have."""

import pytest

from lorakit.planning import plan

FOUR_BITS = {"bits": 4, "compute_dtype": "float32"}


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_what_an_update_is_measured_from_takes_memory_and_a_place_in_the_file(recipe, init):
    plain, offset = plan(recipe()), plan(recipe(**{"lora.init_lora_weights": init}))
    assert offset.trainable == plain.trainable
    assert offset.adapter_bytes == plain.adapter_bytes
    assert offset.base_weights_bytes - plain.base_weights_bytes == plain.adapter_bytes
    assert offset.optimizer_bytes == plain.optimizer_bytes
    header = 2000
    factors = 4 * plain.trainable
    assert 0 <= offset.adapter_file_bytes - plain.adapter_file_bytes - factors < header
    assert offset.peak_bytes > plain.peak_bytes


@pytest.mark.parametrize("init", ["eva", "loftq", "pissa"])
def test_others_take_what_an_ordinary_adapter_takes(recipe, init):
    changes = {"quantization": FOUR_BITS, "lora.init_lora_weights": init}
    plain, other = plan(recipe(quantization=FOUR_BITS)), plan(recipe(**changes))
    kept = plain.adapter_bytes if init == "pissa" else 0
    assert other.base_weights_bytes - plain.base_weights_bytes == kept
    assert other.trainable == plain.trainable


def test_a_plan_tells_what_training_would_refuse(recipe):
    from lorakit.errors import QuantizationError

    with pytest.raises(QuantizationError, match="not quantised"):
        plan(recipe(**{"lora.init_lora_weights": "loftq"}))
