"""Files that are being written, rewritten or removed while they are read."""

import shutil
import time

import pytest

from fixtures.served import WAIT_S, leased, refusal, save_adapters_in, serving
from lorakit.injection import adapter_names
from lorakit.serving.store import adapter_directory, reading
from tiny_models import llama
from tiny_models.adapted import save_adapter_of


@pytest.fixture
def folder(tmp_path):
    return save_adapters_in(tmp_path / "adapters", "a")


def test_half_written_files_are_waited_for(folder, monkeypatch):
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 20.0)
    weights = folder / "a" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with serving(folder) as store:
        future = store.lease("a")
        time.sleep(0.2)
        assert not future.done()
        weights.write_bytes(whole)
        assert future.result(WAIT_S).name == "a"


def test_files_that_change_while_they_are_read_are_read_again(folder, monkeypatch):
    load = reading.Adapter.load
    seen = []

    def rewriting(path):
        adapter = load(path)
        if not seen:
            save_adapter_of(folder / "a", llama(), seed=99)
        seen.append(adapter)
        return adapter

    monkeypatch.setattr(reading.Adapter, "load", rewriting)
    with serving(folder) as store:
        lease = leased(store, "a")
        assert len(seen) == 2
        assert lease.content_hash == store.find("a").content_hash
        assert len(adapter_names(store.model)) == 1


def test_one_that_vanishes_while_it_is_loaded_is_unknown(folder, monkeypatch):
    load = reading.Adapter.load

    def removing(path):
        adapter = load(path)
        shutil.rmtree(path)
        return adapter

    monkeypatch.setattr(reading.Adapter, "load", removing)
    with serving(folder) as store:
        assert "There is no adapter 'a'" in str(refusal(store, "a"))
