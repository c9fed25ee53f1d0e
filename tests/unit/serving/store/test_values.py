"""A lease ends once."""

from pathlib import Path

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.serving.store.values import Lease


def test_it_is_given_back_once():
    calls = []
    path = Path("a")
    lease = Lease("a", "a-0", "0", path, path, InferenceSettings(), (), lambda: calls.append(None))
    with lease:
        assert not calls
    lease.release()
    assert len(calls) == 1
