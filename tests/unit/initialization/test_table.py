import pytest

from lorakit.config.initialization_names import INITIALIZATIONS as NAMES
from lorakit.config.initialization_names import SETTINGS_OF
from lorakit.initialization import INITIALIZATIONS, initialization_of
from lorakit.initialization.pissa import Pissa


def test_each_name_of_the_configuration_has_a_class():
    assert set(INITIALIZATIONS) == {True, False, *NAMES}
    assert len({type(one) for one in INITIALIZATIONS.values()}) == len(INITIALIZATIONS)


def test_batches_are_a_setting_of_those_that_need_data():
    needs_data = tuple(value for value, one in INITIALIZATIONS.items() if one.needs_data)
    assert needs_data == SETTINGS_OF["init_batches"]


@pytest.mark.parametrize(("value", "iterations"), [("pissa", None), ("pissa_niter_16", 16)])
def test_pissa_reads_its_iterations_from_its_name(value, iterations):
    assert initialization_of(value) == Pissa(iterations)


def test_peft_changes_the_base_for_some():
    values = [*INITIALIZATIONS, "pissa_niter_4"]
    changing = [value for value in values if initialization_of(value).changes_base_in_peft]
    assert changing == ["pissa", "olora", "pissa_niter_4"]
