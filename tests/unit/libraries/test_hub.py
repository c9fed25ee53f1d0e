"""The hub as it is seen without a network: a cache in its layout, and an address that is closed."""

import time

import pytest
from huggingface_hub import constants

from lorakit import Adapter, load_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import ConfigError, MissingFileError
from lorakit.files.checkpoint_weights import CheckpointWeights
from lorakit.injection import adapter_names
from lorakit.libraries import hub
from lorakit.libraries.hub import fetch_from_hub, is_hub_id
from tiny_models import gpt2
from tiny_models.adapters import layered_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a function that makes the folder of a repository's snapshot in the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def repository(name, revision="main", commit=COMMIT):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot

    return repository


@pytest.fixture
def closed(monkeypatch):
    """An address of the hub at which nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_PAUSE_S", 0.0)
    monkeypatch.setattr(hub._Reachability, "checked_at_s", None)
    monkeypatch.setattr(hub._Reachability, "problem", None)


@pytest.mark.parametrize("name", ["gpt2", "t5-small", "owner/some.name-1"])
def test_a_base_is_found_under_its_id(cache, name):
    gpt2().save_pretrained(cache(name))
    weights = CheckpointWeights(name)
    assert weights.recorded == name
    assert "transformer.wte.weight" in weights.names()
    assert type(weights.skeleton()).__name__ == "GPT2LMHeadModel"


def test_a_folder_comes_before_an_id(cache, tmp_path):
    gpt2().save_pretrained(tmp_path / "gpt2")
    assert CheckpointWeights("gpt2").directory.resolve() == tmp_path / "gpt2"


def test_what_is_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert is_hub_id("gpt2", is_base=True) and not is_hub_id("gpt2")
    assert is_hub_id("someone/name") and not is_hub_id("owner/name")
    for name in ("", ".", "..", "/gpt2", "./gpt2", "a/b/c", "x" * 300 + "/" * 2, "a\0b", "-"):
        assert not is_hub_id(name, is_base=True)


def test_what_is_fetched_is_said(cache):
    with pytest.raises(MissingFileError) as caught:
        CheckpointWeights("gpt2")
    assert str(caught.value).startswith("No base model at 'gpt2': it is not a local directory, and")
    with pytest.raises(MissingFileError, match="No adapter at 'a/b' at revision 'v1': it is no"):
        Adapter.load("a/b", revision="v1")


def test_revisions_and_folders_of_a_repository(cache):
    layered_adapter(r=1).save(cache("a/b"))
    layered_adapter(r=2).save(cache("a/b", "v2", COMMIT[::-1]) / "inside")
    assert Adapter.load("a/b").config.r == 1
    assert Adapter.load("a/b", revision="v2", subfolder="inside").config.r == 2
    with pytest.raises(MissingFileError):
        Adapter.load("a/b", subfolder="inside")


def test_the_token_is_passed_on(monkeypatch, tmp_path):
    import huggingface_hub

    layered_adapter(r=1).save(tmp_path / "in")
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **given: asked.update(given) or tmp_path
    )
    Adapter.load("a/b", revision="v1", subfolder="in", token="secret")
    assert asked["token"] == "secret" and asked["revision"] == "v1"
    assert asked["allow_patterns"] == [f"in/{CONFIG_FILE}", f"in/{WEIGHTS_FILE}"]


def test_local_folders_have_folders_but_no_revisions(tmp_path):
    layered_adapter(r=1).save(tmp_path / "run" / "adapter")
    assert Adapter.load(tmp_path / "run", subfolder="adapter").config.r == 1
    with pytest.raises(ConfigError, match="but only hub repositories have rev"):
        Adapter.load(tmp_path / "run" / "adapter", revision="main")
    for wrong in ("..", "/etc", "a/../..", "", "a\0b"):
        with pytest.raises(ConfigError, match="Wrong subfolder"):
            Adapter.load(tmp_path / "run", subfolder=wrong)


@pytest.mark.parametrize(
    ("folder", "name"), [("run-1.5", "run-1_5"), ("keys", "adapter_keys"), ("ä ö", "adapter")]
)
def test_a_folder_gives_a_name_that_can_be_one(tmp_path, folder, name):
    from lorakit import LoraConfig, add_adapter, save_adapter

    model = gpt2()
    add_adapter(model, LoraConfig(r=1, target_modules=["c_attn"]))
    save_adapter(model, tmp_path / folder)
    load_adapter(model, tmp_path / folder)
    assert adapter_names(model) == ("default", name)


def test_a_hub_that_cannot_be_reached_is_asked_once(cache, closed):
    gpt2().save_pretrained(cache("gpt2"))
    began = time.monotonic()
    with pytest.raises(MissingFileError) as caught:
        fetch_from_hub("owner/adapter", (CONFIG_FILE,))
    text = str(caught.value)
    assert text.startswith("No adapter at 'owner/adapter': it is not a local directory, and")
    assert "http://127.0.0.1:9 cannot be reached: " in text
    assert "transformer.wte.weight" in CheckpointWeights("gpt2").names()  # what is cached serves
    assert time.monotonic() - began < 10
    assert not constants.HF_HUB_OFFLINE


def test_an_unreachable_hub_is_asked_once_for_model_and_data(cache, closed):
    import datasets
    from transformers import AutoTokenizer

    from lorakit.data.reading.sources import _read_hub
    from lorakit.libraries.foreign_code import load_pretrained
    from lorakit.models.loading_problems import loading_error

    before = datasets.config.HF_HUB_OFFLINE
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        load_pretrained(AutoTokenizer, "nobody/model", trust_remote_code=False)
    text = str(loading_error("nobody/model", "model", "tokenizer", caught.value))
    assert "got 'nobody/model', which is not a directory" in text
    assert "http://127.0.0.1:9 cannot be reached" in text
    with pytest.raises(MissingFileError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        _read_hub("nobody/data", None, "data.train")
    assert time.monotonic() - began < 10
    assert constants.HF_HUB_OFFLINE is False and datasets.config.HF_HUB_OFFLINE is before
