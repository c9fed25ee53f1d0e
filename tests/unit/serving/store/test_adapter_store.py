"""Adapters of a server: found, leased, exchanged while requests run, loaded and unloaded."""

import asyncio
import random
import re
import shutil
import threading

import pytest
import torch

from fixtures.served import (
    BASE,
    WAIT_S,
    alone,
    leased,
    outputs,
    refusal,
    save_adapters_in,
    serving,
)
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterNameError,
    ConfigError,
    MissingFileError,
)
from lorakit.injection import adapter_names
from lorakit.injection.detached import attach_adapter
from lorakit.serving.store import adapter_directory, admission
from tiny_models import llama
from tiny_models.adapted import save_adapter_of, with_adapter
from tolerances import LOGITS_TOLERANCE, largest_error


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(adapter_directory, "_SETTLED_S", 0.0)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return save_adapters_in(tmp_path_factory.mktemp("three"), "a", "b", "c")


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "adapters")


def rewrite(path, seed, **config):
    save_adapter_of(path, llama(), seed=seed, **config)


# ---- what is known ----


def test_all_are_known_and_none_is_loaded(folder):
    with serving(folder) as store:
        assert [one.name for one in store.describe_all()] == ["a", "b", "c"]
        one = store.describe_all()[0]
        assert (one.rank, one.in_memory, one.content_hash, one.problem) == (2, False, None, None)
        assert (one.leases, one.pinned, one.path) == (0, False, folder / "a")
        assert one.bytes > 0 and store.bytes_in_memory == 0 and store.counts() == {}
        assert adapter_names(store.model) == () and store.in_memory() == []


def test_those_in_memory_are_named(folder):
    with serving(folder) as store:
        store.lease("b").result(WAIT_S).release()
        assert store.in_memory() == ["b"]


def test_bytes_are_those_that_the_model_holds_afterwards(folder):
    with serving(folder) as store:
        before = sum(p.nbytes for p in store.model.parameters())
        with leased(store, "a"):
            after = sum(p.nbytes for p in store.model.parameters())
        assert after - before == store.find("a").bytes == store.bytes_in_memory


def test_a_lease_tells_what_requests_need(folder):
    settings = InferenceSettings(max_length=7, format="messages")
    settings.save(folder / "a")
    with serving(folder) as store, leased(store, "a") as lease:
        known = store.find("a")
        assert lease.settings == settings
        assert lease.companions == known.path
        assert lease.content_hash == known.content_hash and len(lease.content_hash) == 64
        assert known.in_memory and known.leases == 1
        key = lease.files_key
        InferenceSettings(max_length=8).save(folder / "a")
        with leased(store, "a") as later:
            assert later.settings.max_length == 8 and later.files_key != key
            assert later.carried_name == lease.carried_name  # the same weights


def test_settings_that_are_damaged_are_a_problem(folder):
    (folder / "a" / "lorakit.json").write_text('{"max_length": -1}')
    with serving(folder) as store:
        assert isinstance(refusal(store, "a"), ConfigError)


# ---- bad input ----


def test_unknown_names(folder):
    with serving(folder) as store:
        for name in ("aa", BASE, "../a", ""):
            assert isinstance(refusal(store, name), AdapterNameError)
        assert store.counts() == {}
        with pytest.raises(AdapterNameError):
            store.find("zz")


def test_problems_are_kept_for_each_and_the_others_are_served(folder):
    (folder / "b" / "adapter_model.safetensors").unlink()
    weights = folder / "c" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with serving(folder) as store:
        assert isinstance(refusal(store, "b"), MissingFileError)
        assert isinstance(refusal(store, "c"), AdapterFileError)
        problems = [one.problem for one in store.describe_all()]
        assert (
            problems[0] is None and "No adapter_model" in problems[1] and "complete" in problems[2]
        )
        assert leased(store, "a").name == "a"


def test_values_that_are_not_finite_are_refused_with_the_key(folder, monkeypatch):
    path = folder / "a" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(data)
    with serving(folder) as store:
        error = refusal(store, "a")
        assert isinstance(error, AdapterFileError) and "lora_" in str(error)


def test_no_ops_are_refused_unless_allowed(folder):
    rewrite(folder / "a", 1, init_lora_weights=True)
    save_adapter_of(folder / "fresh", llama(), scale=0.0)
    with serving(folder) as store:
        assert "zero in all 14 modules" in str(refusal(store, "fresh"))
    with serving(folder, allow_noop=True) as store, leased(store, "fresh") as lease:
        assert torch.equal(*outputs(store, None, lease))


def test_one_of_another_base(folder):
    save_adapter_of(folder / "other", llama(hidden_size=24, intermediate_size=40))
    with serving(folder) as store:
        error = refusal(store, "other")
        assert isinstance(error, AdapterMismatchError)
        assert re.search(r"has shape \(2, \d+\), but the base's layer needs \(2, \d+\)", str(error))
        assert store.find("other").problem == str(error)


# ---- answers ----


def test_rows_of_one_batch_equal_each_adapter_alone(folder):
    with serving(folder) as store:
        leases = [leased(store, name) for name in ("a", "b", "c")]
        rows = outputs(store, leases[0], None, leases[1], leases[2], leases[0])
        expected = [alone(store, folder / name) for name in ("a", "b", "c")]
        for row, name in ((0, 0), (2, 1), (3, 2), (4, 0)):
            assert largest_error(rows[row : row + 1], expected[name]) < LOGITS_TOLERANCE
        base = alone(store, folder / "a", is_off=True)
        assert largest_error(rows[1:2], base) < LOGITS_TOLERANCE


# ---- changes ----


def test_a_rewritten_adapter_is_another_version_and_running_requests_keep_theirs(folder):
    with serving(folder) as store:
        old = leased(store, "a")
        before = outputs(store, old)
        first = alone(store, folder / "a")
        rewrite(folder / "a", 123)
        new = leased(store, "a")  # without a scan
        assert new.carried_name != old.carried_name
        assert len(adapter_names(store.model)) == 2
        rows = outputs(store, old, new)
        assert largest_error(rows[:1], before) < LOGITS_TOLERANCE
        assert largest_error(rows[:1], first) < LOGITS_TOLERANCE
        assert largest_error(rows[1:], alone(store, folder / "a")) < LOGITS_TOLERANCE
        old.release()
        outputs(store, None)  # what was asked of the engine before is done
        assert adapter_names(store.model) == (new.carried_name,)
        new.release()
        assert store.counts()["a"].loads == 2


def test_a_scan_brings_a_rewritten_one_into_memory(folder):
    with serving(folder) as store:
        leased(store, "a").release()
        rewrite(folder / "a", 123)
        rewrite(folder / "b", 124)
        store.scan()
        with leased(store, "a") as lease:  # joins the load of the scan
            assert store.counts()["a"].loads == 2
            outputs(store, None)
            assert adapter_names(store.model) == (lease.carried_name,)
        assert not store.find("b").in_memory


def test_the_old_content_again_is_the_old_version(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "copy")
    with serving(folder) as store:
        old = leased(store, "a")
        rewrite(folder / "a", 123)
        leased(store, "a").release()
        shutil.rmtree(folder / "a")
        shutil.copytree(tmp_path / "copy", folder / "a")
        with leased(store, "a") as again:
            assert again.carried_name == old.carried_name
            assert store.counts()["a"].loads == 2


def test_a_removed_one_is_unknown_and_running_requests_finish(folder):
    with serving(folder) as store:
        lease = leased(store, "a")
        shutil.rmtree(folder / "a")
        store.scan()
        assert isinstance(refusal(store, "a"), AdapterNameError)
        outputs(store, lease)
        lease.release()
        outputs(store, None)
        assert adapter_names(store.model) == ()


def test_watching_notices_by_itself_and_loads_what_is_pinned(folder, monkeypatch):
    with serving(folder, pinned=frozenset("b"), scan_every_s=0.01) as store:
        loaded = threading.Event()

        def noticing(*args):
            attach_adapter(*args)
            loaded.set()

        monkeypatch.setattr(admission, "attach_adapter", noticing)
        store.start_watching()
        assert loaded.wait(WAIT_S)
        loaded.clear()
        rewrite(folder / "b", 5)
        assert loaded.wait(WAIT_S)


# ---- load and unload ----


def test_loading_under_a_name_and_unloading(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "root" / "deep" / "x")
    with serving(folder, root=tmp_path) as store:
        known = store.load("mine", "root/deep/x").result(WAIT_S)
        assert (known.name, known.problem, known.in_memory) == ("mine", None, True)
        lease = leased(store, "mine")
        store.unload("mine")
        assert isinstance(refusal(store, "mine"), AdapterNameError)
        outputs(store, lease)
        lease.release()
        outputs(store, None)
        assert adapter_names(store.model) == ()
        with pytest.raises(AdapterNameError):
            store.unload("mine")


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("a", "b", AdapterNameError),
        (BASE, "b", AdapterNameError),
        ("", "b", AdapterNameError),
        ("x\n", "b", AdapterNameError),
        ("x", "../x", ConfigError),
        ("x", "/etc", ConfigError),
        ("x", "absent", MissingFileError),
        ("x", "damaged", AdapterFileError),
    ],
)
def test_bad_requests_to_load(folder, name, path, kind):
    shutil.copytree(folder / "a", folder / "damaged")
    (folder / "damaged" / "adapter_config.json").write_text("[]")
    with serving(folder) as store:
        error = store.load(name, path).exception(WAIT_S)
        assert isinstance(error, kind), error
        assert "\n" not in str(error)
        assert "x" not in [one.name for one in store.describe_all()]
        assert store.load("x", "b").result(WAIT_S).name == "x"


def test_one_of_the_folder_is_forgotten_until_it_changes(folder):
    with serving(folder) as store:
        leased(store, "a").release()
        store.unload("a")
        store.scan()
        assert [one.name for one in store.describe_all()] == ["b", "c"]
        rewrite(folder / "a", 9)
        assert leased(store, "a").name == "a"


# ---- many threads ----


def test_a_cancelled_wait_leaves_no_lease(folder):
    async def run(store):
        store.steps.are_open.clear()
        task = asyncio.create_task(store.wait_for_lease("a"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.steps.are_open.set()
        async with asyncio.timeout(WAIT_S):
            with await store.wait_for_lease("a"):
                assert store.find("a").leases == 1
        with pytest.raises(AdapterNameError):
            await store.wait_for_lease("zz")

    with serving(folder) as store:
        asyncio.run(run(store))
        assert store.find("a").leases == 0


def test_a_cancelled_future_gives_its_lease_back(folder):
    with serving(folder) as store:
        store.steps.are_open.clear()
        first, second = store.lease("a"), store.lease("a")
        assert first.cancel()
        store.steps.are_open.set()
        second.result(WAIT_S).release()
        assert store.find("a").leases == 0


def test_threads_that_lease_rewrite_and_unload_at_random(folder):
    """Whatever happens, each lease is of a version that the model carries, with its content."""
    names = ["a", "b", "c", "d", "e"]
    save_adapters_in(folder, "d", "e")
    with serving(folder) as probing:
        size = probing.describe_all()[0].bytes
    problems, done = [], threading.Event()
    by_hash, lock = {}, threading.Lock()

    with serving(folder, memory_bytes=3 * size) as store:

        def use(seed):
            choose = random.Random(seed)
            for _ in range(25):
                try:
                    with store.lease(choose.choice(names)).result(WAIT_S) as lease:
                        row = outputs(store, lease)
                        with lock:
                            first = by_hash.setdefault(lease.content_hash, row)
                        if not torch.equal(first, row):
                            problems.append(lease.name)
                except Exception as error:
                    problems.append(error)

        def change():
            choose = random.Random(0)
            while not done.wait(0.02):
                rewrite(folder / choose.choice(names), choose.randrange(100))
                store.scan()

        writer = threading.Thread(target=change)
        users = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
        for thread in (writer, *users):
            thread.start()
        for thread in users:
            thread.join()
        done.set()
        writer.join()
        assert problems == []
        assert len(by_hash) > 5
        assert all(one.leases == 0 for one in store.describe_all())
        for name in names:  # a load that the last scan has begun has ended with this
            leased(store, name).release()
        assert store.bytes_in_memory <= 3 * size
        outputs(store, None)
        assert len(adapter_names(store.model)) <= 3


def test_a_model_that_was_changed_by_hand_is_as_before_when_all_have_left(folder):
    model = with_adapter(llama, "mine")
    with serving(folder, model=model) as store:
        leased(store, "a").release()
        store.unload("a")
        outputs(store, None)
        assert adapter_names(model) == ("mine",)
