import shutil

import pytest

from lorakit.serving.tokenizer_cache import TokenizerCache
from tiny_models.tokenizers import byte_bpe


@pytest.fixture
def directories(tmp_path):
    for name in ("a", "b", "c"):
        byte_bpe(chat=True).save_pretrained(tmp_path / name)
    (tmp_path / "c" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (tmp_path / "none").mkdir()
    return tmp_path


def test_the_same_files_are_one_tokenizer(directories):
    base = byte_bpe()
    cache = TokenizerCache(base)
    assert cache.get(directories / "a") is cache.get(directories / "b")
    assert cache.get(directories / "c") is not cache.get(directories / "a")
    assert cache.get(directories / "c").chat_template == "{{ messages[0]['content'] }}"
    assert cache.get(directories / "none") is base
    assert len(cache) == 2


def test_a_rewritten_tokenizer_is_read_again(directories):
    cache = TokenizerCache(byte_bpe())
    before = cache.get(directories / "a")
    shutil.copy(directories / "c" / "chat_template.jinja", directories / "a")
    assert cache.get(directories / "a").chat_template != before.chat_template
