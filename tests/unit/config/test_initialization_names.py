"""The values of init_lora_weights, and the settings of some of them."""

import pytest

from lorakit.config.initialization_names import (
    INITIALIZATIONS,
    check_initialization,
    require_settings_of,
)


@pytest.mark.parametrize(
    "value", [True, False, *INITIALIZATIONS, "pissa_niter_0", "pissa_niter_16"]
)
def test_known_values_stay(value):
    assert check_initialization(value) is value


@pytest.mark.parametrize("value", ["", "PiSSA", "pissa_niter_", "pissa_niter_-1", "pissa_niter_1x"])
def test_other_values_are_answered_with_the_known_ones(value):
    with pytest.raises(ValueError, match=r"^expected true, false, gaussian, .* and a number$"):
        check_initialization(value)


def test_settings_belong_to_some_initializations_alone():
    require_settings_of(["eva_rho", "init_batches"], "eva")
    require_settings_of(["init_batches"], "lora_ga")
    require_settings_of([], True)
    with pytest.raises(ValueError) as caught:
        require_settings_of(["init_batches", "eva_rho"], "lora_ga")
    assert str(caught.value) == (
        "eva_rho is a setting of init_lora_weights eva, got init_lora_weights='lora_ga'; leave "
        "eva_rho out"
    )
