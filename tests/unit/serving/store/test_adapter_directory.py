"""What the files of a directory say without reading tensors."""

import os
import time

import pytest

from lorakit.errors import AdapterFileError, ConfigError, MissingFileError
from lorakit.serving.store import adapter_directory as module
from lorakit.serving.store.adapter_directory import (
    adapter_directory,
    files_key,
    may_be_written,
    read_facts,
)
from tiny_models import gpt2, llama
from tiny_models.adapted import save_adapter_of


@pytest.fixture
def saved(tmp_path):
    return save_adapter_of(tmp_path / "a", llama(), r=3, task_type="CAUSAL_LM")


def test_an_adapter_and_a_run_are_found_and_other_folders_are_not(saved, tmp_path):
    assert adapter_directory(saved) == saved
    run = tmp_path / "run"
    run.mkdir()
    assert adapter_directory(run) is None
    os.rename(saved, run / "adapter")
    assert adapter_directory(run) == run / "adapter"
    assert adapter_directory(tmp_path / "absent") is None


def test_ranks_task_and_sizes(saved, tmp_path):
    facts = read_facts(saved)
    assert (facts.rank, facts.kind) == (3, ("CAUSAL_LM", None))
    size = (saved / "adapter_model.safetensors").stat().st_size
    assert 0.5 * size < 4 * facts.elements < size
    embedding = save_adapter_of(
        tmp_path / "b", gpt2(), target_modules=["wte"], r=2, rank_pattern={"wte": 5}
    )
    assert read_facts(embedding).rank == 5


def test_damage_is_an_error(saved):
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors.*complete"):
        read_facts(saved)
    weights.unlink()
    with pytest.raises(MissingFileError, match=r"No adapter_model\.safetensors"):
        read_facts(saved)
    weights.write_bytes(whole)
    text = config.read_text()
    config.write_text(text.replace('"r": 3', '"r": 0'))
    with pytest.raises(ConfigError, match="r"):
        read_facts(saved)
    config.write_text("{")
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json"):
        read_facts(saved)


def test_each_write_changes_the_key_and_hidden_files_do_not(saved):
    seen = {files_key(saved)}
    (saved / ".adapter_model.safetensors.0a1b").write_text("being written")
    (saved / "folder").mkdir()
    assert {files_key(saved)} == seen
    for name in ("adapter_config.json", "tokenizer.json", "lorakit.json"):
        path = saved / name
        path.write_bytes(path.read_bytes() if path.exists() else b"{}")
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + len(seen)))
        seen.add(files_key(saved))
    assert len(seen) == 4
    with pytest.raises(OSError):
        files_key(saved / "absent")


def test_the_companions_of_a_checkpoint_count_too(saved, tmp_path):
    checkpoint = tmp_path / "checkpoint-5"
    os.rename(saved, checkpoint)
    before = files_key(checkpoint)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    assert files_key(checkpoint) != before


def test_young_files_may_be_written_still(saved, monkeypatch):
    assert may_be_written(saved)
    monkeypatch.setattr(module, "_SETTLED_S", 0.0)
    assert not may_be_written(saved)
    monkeypatch.setattr(module, "_SETTLED_S", 1e9)
    assert may_be_written(saved / "absent")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not may_be_written(saved / "absent" / "absent")
