"""Work that does not grow with the number of adapters on a model."""

import gc
import sys

import pytest

from lorakit import Adapter, add_adapter, set_adapter
from tiny_models import llama
from tiny_models.adapted import two_adapters


def calls_of(work):
    """Count the calls of Python and C functions that a piece of work makes."""
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return made


@pytest.fixture
def uncollected():
    """Collect no garbage during a test: what that would call is not the work's."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_adding_and_switching_do_the_same_work_however_many_adapters_there_are(uncollected):
    model = llama()
    adapters = [Adapter.from_model(two_adapters(llama()), name) for name in "ab"]
    loads = [
        calls_of(lambda k=k: add_adapter(model, adapters[k % 2], f"a{k}", trainable=False))
        for k in range(40)
    ]
    switches = [calls_of(lambda k=k: set_adapter(model, f"a{k}")) for k in (0, 1, 38, 39)]
    assert loads[2] == loads[20] == loads[39]
    assert switches[0] == switches[1] == switches[2] == switches[3]
