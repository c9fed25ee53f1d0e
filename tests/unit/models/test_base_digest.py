"""The digest of a base: of a local directory or a cached hub model, without a download."""

import shutil

import huggingface_hub
import pytest

from lorakit.models import base_digest as module
from lorakit.models.base_digest import are_different, base_digest


def test_a_copy_of_a_base_has_its_digest(tiny_llama_dir, tiny_distilbert_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "copy")
    digest = base_digest(tiny_llama_dir)
    assert digest == base_digest(str(tmp_path / "copy"))
    assert digest != base_digest(tiny_distilbert_dir) is not None


def test_a_hub_model_is_looked_up_in_the_cache(tiny_llama_dir, monkeypatch):
    asked = []

    def cached(name, file, revision=None):
        asked.append((name, file, revision))
        return f"{tiny_llama_dir}/{file}" if file == "model.safetensors" else None

    monkeypatch.setattr(module, "try_to_load_from_cache", cached)
    assert base_digest("owner/model", "v1") == base_digest(tiny_llama_dir)
    assert asked == [("owner/model", "model.safetensors", "v1")]


@pytest.mark.parametrize("name", ["owner/model", "not a name ?"])
def test_a_base_that_is_not_here_has_no_digest(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked"))
    assert base_digest(name) is None


def test_a_damaged_file_has_no_digest(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert base_digest(str(tmp_path)) is None


def test_weights_differ_if_both_digests_are_known_and_differ(tiny_llama_dir, tmp_path):
    digest, unknown = base_digest(tiny_llama_dir), base_digest(str(tmp_path))
    assert are_different("another", digest)
    assert not are_different(digest, digest)
    assert not are_different(None, digest)
    assert not are_different(digest, unknown)
