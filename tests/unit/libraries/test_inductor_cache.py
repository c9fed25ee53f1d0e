import os

import pytest

from lorakit.libraries.inductor_cache import separate_inductor_cache


@pytest.fixture
def unset(monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "anything")  # so that it is put back whatever happens
        monkeypatch.delenv(name)


def test_each_named_instruction_set_has_a_directory(unset, monkeypatch):
    directories = set()
    for capability in ("avx2", "default"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        separate_inductor_cache()
        directories.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(directories) == 2


def test_without_a_named_set_torch_s_directory_stays(unset):
    separate_inductor_cache()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_the_user_s_directory_stays(unset, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    separate_inductor_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
