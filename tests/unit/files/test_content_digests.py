"""Digests of files, folders and weights."""

import hashlib
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from lorakit.files import content_digests
from lorakit.files.content_digests import content_sha256, file_sha256, weights_digest


def test_a_file_has_the_digest_that_sha256sum_prints(tmp_path):
    (tmp_path / "a").write_bytes(b"rows")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"rows").hexdigest()
    assert content_sha256(tmp_path / "a") == file_sha256(tmp_path / "a")


def test_a_settled_file_is_read_once_and_a_changed_one_again(tmp_path, monkeypatch):
    """The time of a file's last modification can be set, so it alone says nothing."""
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        content_digests.hashlib, "file_digest", lambda *given: read.append(1) or digest(*given)
    )
    file = tmp_path / "a"
    file.write_bytes(b"rows")
    known = file.stat()
    fresh = [file_sha256(file) for _ in range(2)]  # it may change again within its time stamp
    assert len(read) == 2
    monkeypatch.setattr(content_digests, "_SETTLED_NS", 0)
    settled = [file_sha256(file) for _ in range(3)]
    assert len(read) == 3 and len({*fresh, *settled}) == 1
    time.sleep(0.02)  # longer than a tick of the clock of files
    file.write_bytes(b"cows")
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert file_sha256(file) == hashlib.sha256(b"cows").hexdigest()


def test_names_and_contents_of_its_files_identify_a_folder(tmp_path):
    for name, text in (("one/a", "x"), ("one/b/c", "y"), ("two/b/c", "y"), ("two/a", "x")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert content_sha256(tmp_path / "one") == content_sha256(tmp_path / "two")
    (tmp_path / "two/a").rename(tmp_path / "two/d")
    assert content_sha256(tmp_path / "one") != content_sha256(tmp_path / "two")


@pytest.fixture
def digest(tmp_path):
    """The digest of weights that are saved in one file, or in one each."""

    def make(tensors, *, apart=False):
        groups = [{name: tensor} for name, tensor in tensors.items()] if apart else [tensors]
        files = [tmp_path / f"model-{number}.safetensors" for number in range(len(groups))]
        for file, group in zip(files, groups, strict=True):
            save_file(group, file)
        return weights_digest(files)

    return make


def test_weights_keep_their_digest_in_bfloat16_and_in_other_files(digest):
    tensors = {"a": torch.randn(40, 30), "b": torch.randn(3), "n": torch.tensor([], dtype=int)}
    first = digest(tensors)
    assert digest(tensors, apart=True) == first
    assert digest({k: t.bfloat16() if k != "n" else t for k, t in tensors.items()}) == first
    assert digest({**tensors, "b": tensors["b"] + 1}) != first
    assert digest({**tensors, "a": tensors["a"].reshape(30, 40)}) != first
    assert digest({"a": tensors["a"], "c": tensors["b"], "n": tensors["n"]}) != first


def test_no_files_have_no_digest():
    assert weights_digest([]) is None
