"""Loads: read in threads, put in between steps, remembered if they fail."""

import shutil
import threading
import time
from concurrent.futures import Future

import pytest

from fixtures.served import WAIT_S, leased, refusal, save_adapters_in, serving
from lorakit.errors import (
    AdapterFileError,
    AdapterMemoryError,
    AdapterMismatchError,
    AdapterStateError,
)
from lorakit.injection import adapter_names
from lorakit.serving.store import adapter_directory, loader
from tiny_models import llama
from tiny_models.adapted import save_adapter_of

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return save_adapters_in(tmp_path_factory.mktemp("three"), *NAMES)


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "adapters")


@pytest.fixture
def settled(monkeypatch):
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 0.0)


@pytest.fixture
def reads(monkeypatch):
    """Count how often each directory is read."""
    read = []
    load = loader.Adapter.load

    def counting(path):
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(loader.Adapter, "load", counting)
    return read


def size_of(store):
    return store.describe_all()[0].bytes


def test_the_carried_name_has_name_and_hash(folder):
    with serving(folder) as store:
        lease = leased(store, "a")
        assert lease.carried_name == f"a-{lease.content_hash[:12]}"
        assert adapter_names(store.model) == (lease.carried_name,)


def test_an_adapter_of_other_weights_is_refused_until_its_files_change(folder, reads):
    def require(name, adapter, settings, directory):
        if name == "a" and settings.seed == 42:
            raise AdapterMismatchError(f"{directory} was trained on other weights.")

    with serving(folder, require_base=require) as store:
        for _ in range(2):
            assert isinstance(refusal(store, "a"), AdapterMismatchError)
        assert reads == ["a"] and "other weights" in store.find("a").problem
        assert leased(store, "b").name == "b"
        (folder / "a" / "lorakit.json").write_text('{"seed": 1}')
        assert leased(store, "a").name == "a"


def test_many_who_ask_at_once_share_one_load(folder, reads):
    with serving(folder) as store:
        store.steps.are_open.clear()
        futures = [store.lease("a") for _ in range(20)]
        store.steps.are_open.set()
        leases = [future.result(WAIT_S) for future in futures]
        assert reads == ["a"] and store.steps.functions == 2  # the first prepares the base
        assert store.find("a").leases == 20
        for lease in leases:
            lease.release()
        assert store.find("a").leases == 0
        assert store.counts()["a"].loads == 1


def test_two_names_of_equal_content_share_a_version(folder):
    shutil.copytree(folder / "a", folder / "twin")
    with serving(folder) as store:
        first, second = [f.result(WAIT_S) for f in (store.lease("a"), store.lease("twin"))]
        assert first.carried_name == second.carried_name
        assert first.companions != second.companions
        assert len(adapter_names(store.model)) == 1
        store.unload("a")
        first.release()
        assert len(adapter_names(store.model)) == 1  # the twin has it


def test_a_failure_is_remembered_until_a_file_changes(folder, reads, settled):
    config = folder / "a" / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"lora_alpha": 3', '"lora_alpha": 4'))  # of another save
    with serving(folder) as store:
        for _ in range(3):
            error = refusal(store, "a")
            assert isinstance(error, AdapterFileError), error
        assert reads == ["a"]
        assert store.find("a").problem == str(error)
        assert store.counts()["a"].refusals == 3
        config.write_text(text)
        assert leased(store, "a").name == "a"
        assert store.find("a").problem is None


def test_an_adapter_that_the_model_refuses_is_not_tried_again(folder, reads, settled):
    save_adapter_of(folder / "other", llama(hidden_size=24, intermediate_size=40))
    with serving(folder) as store:
        errors = [refusal(store, "other") for _ in range(3)]
        assert all("was made for another base" in str(error) for error in errors)
        assert len({id(error) for error in errors}) == 3
        assert reads == ["other"]
        assert store.steps.functions == 1  # prepares the base; the model never sees the adapter


def test_the_least_recently_used_leaves(folder):
    with serving(folder) as probing:
        size = size_of(probing)
    with serving(folder, memory_bytes=2 * size) as store:
        for name in ("a", "b", "a", "c"):
            leased(store, name).release()
        assert [one.name for one in store.describe_all() if one.in_memory] == ["a", "c"]
        assert store.bytes_in_memory == 2 * size
        assert store.counts()["b"].evictions == 1
        assert len(adapter_names(store.model)) == 2
        assert leased(store, "b").name == "b"  # comes back


def test_pins_stay(folder):
    with serving(folder) as probing:
        size = size_of(probing)
    with serving(folder, memory_bytes=2 * size, pinned=frozenset("a")) as store:
        for name in ("a", "b", "c", "b"):
            leased(store, name).release()
        assert store.find("a").in_memory and store.find("a").pinned
        assert store.counts()["a"].loads == 1


def test_a_load_waits_for_room_and_gets_it(folder):
    with serving(folder) as probing:
        size = size_of(probing)
    with serving(folder, memory_bytes=size) as store:
        lease = leased(store, "a")
        future = store.lease("b")
        time.sleep(0.1)
        assert not future.done()
        lease.release()
        assert future.result(WAIT_S).name == "b"
        assert not store.find("a").in_memory


def test_a_load_that_finds_no_room_in_time_is_refused_and_may_be_tried_again(folder):
    with serving(folder) as probing:
        size = size_of(probing)
    with serving(folder, memory_bytes=size, wait_for_room_s=0.05) as store:
        lease = leased(store, "a")
        error = refusal(store, "b")
        assert isinstance(error, AdapterMemoryError)
        assert f"got {size:,} bytes to load, and all {size:,} of {size:,} in use" in str(error)
        assert store.find("b").problem is None
        lease.release()
        assert leased(store, "b").name == "b"


def test_one_larger_than_the_memory_is_refused_before_it_is_read(folder, reads):
    with serving(folder, memory_bytes=100) as store:
        error = refusal(store, "a")
        assert isinstance(error, AdapterMemoryError)
        assert f"got {size_of(store):,} bytes, expected at most 100" in str(error)
        assert reads == []


def test_an_error_of_the_engine_is_passed_on_and_not_remembered(folder):
    with serving(folder) as store:
        admission = store._loader._admission
        steps, admission._run_between_steps = admission._run_between_steps, fails
        assert isinstance(refusal(store, "a"), ZeroDivisionError)
        admission._run_between_steps = steps
        assert leased(store, "a").name == "a"
        assert store.bytes_in_memory == size_of(store)


def fails(function):
    raise ZeroDivisionError("the engine is broken")


def test_a_change_that_is_cancelled_ends_the_wait(folder, monkeypatch):
    with serving(folder) as store:
        leased(store, "b").release()
        store._memory.limit_bytes = size_of(store)
        held = {*adapter_names(store.model)}
        cancelled = Future()
        cancelled.cancel()
        cancelled.set_running_or_notify_cancel()
        admission = store._loader._admission
        for name in ("remove", "_run_between_steps"):
            with monkeypatch.context() as patched:
                patched.setattr(admission, name, lambda _: cancelled)
                assert isinstance(refusal(store, "a"), AdapterStateError)
            assert store.find("b").in_memory and store.counts()["b"].evictions == 0
            for entered in {*adapter_names(store.model)} - held:
                admission.remove([entered]).result()
        assert leased(store, "a").name == "a"


def test_after_the_end_nothing_is_loaded(folder):
    with serving(folder) as store:
        store.stop_watching()
        assert isinstance(refusal(store, "a"), AdapterStateError)


def test_a_load_in_a_thread_disturbs_no_other_lease(folder):
    """Reading a slow disk holds no lock."""
    with serving(folder) as store:
        leased(store, "a").release()
        reading, go_on = threading.Event(), threading.Event()
        load = loader.Adapter.load

        def slow(path):
            reading.set()
            go_on.wait(WAIT_S)
            return load(path)

        loader.Adapter.load = slow
        try:
            future = store.lease("b")
            assert reading.wait(WAIT_S)
            assert store.lease("a").done() and not future.done()
        finally:
            go_on.set()
            loader.Adapter.load = load
        assert future.result(WAIT_S).name == "b"


# ---- files that are written, rewritten or removed while they are read ----


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
    load = loader.Adapter.load
    seen = []

    def rewriting(path):
        adapter = load(path)
        if not seen:
            save_adapter_of(folder / "a", llama(), seed=99)
        seen.append(adapter)
        return adapter

    monkeypatch.setattr(loader.Adapter, "load", rewriting)
    with serving(folder) as store:
        lease = leased(store, "a")
        assert len(seen) == 2
        assert lease.content_hash == store.find("a").content_hash
        assert len(adapter_names(store.model)) == 1


def test_one_that_vanishes_while_it_is_loaded_is_unknown(folder, monkeypatch):
    load = loader.Adapter.load

    def removing(path):
        adapter = load(path)
        shutil.rmtree(path)
        return adapter

    monkeypatch.setattr(loader.Adapter, "load", removing)
    with serving(folder) as store:
        assert "There is no adapter 'a'" in str(refusal(store, "a"))
