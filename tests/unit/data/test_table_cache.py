"""Tables that are kept on disk."""

import os
import shutil
import time

import pyarrow as pa
import pytest

from lorakit.data import table_cache
from lorakit.data.table_cache import Spool, TableCache
from lorakit.recipes.data_section import DataConfig

TABLE = pa.table({"text": ["a", None, "ccc"], "ids": [[1], [], [2, 3]]})
SIZE = TABLE.nbytes


@pytest.fixture
def cache(tmp_path):
    return TableCache(tmp_path / "kept", 10**9)


def test_what_was_kept_comes_back_mapped_with_its_facts(cache):
    assert cache.get("key") is None
    first = cache.put("key", {"examples": TABLE, "more": TABLE[:1]}, {"notes": ["one"]})
    again = cache.get("key")

    for kept in (first, again):
        assert kept.tables == {"examples": TABLE, "more": TABLE[:1]}
        assert kept.facts == {"notes": ["one"]}
    assert pa.total_allocated_bytes() < 10**6 or again.tables["examples"].nbytes == SIZE
    assert [path.name for path in cache.directory.iterdir()] == ["key"]
    assert cache.notes == ()


@pytest.mark.parametrize("how", ["cut", "changed", "no facts", "other facts", "no file", "renamed"])
def test_a_damaged_entry_is_removed(cache, how):
    cache.put("key", {"examples": TABLE}, {})
    file, facts = cache.directory / "key/examples.arrow", cache.directory / "key/facts.json"
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[:-9])
    elif how == "changed":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "no file":
        file.unlink()
    elif how == "renamed":
        cache.put("other", {"examples": TABLE[:1]}, {})
        shutil.rmtree(cache.directory / "key")
        (cache.directory / "other").rename(cache.directory / "key")
    else:
        facts.write_text({"no facts": "", "other facts": "[]"}[how])

    assert cache.get("key") is None
    assert not (cache.directory / "key").exists()
    cache.put("key", {"examples": TABLE}, {})
    assert cache.get("key").tables["examples"] == TABLE


def test_the_entries_leave_that_were_used_least_recently(tmp_path):
    cache = TableCache(tmp_path, 10**9)
    for age, name in ((30, "old"), (20, "older use"), (10, "new")):
        cache.put(name, {"examples": TABLE}, {})
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    mapped = cache.get("old").tables["examples"]  # its use is the newest now
    size = sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    tight = TableCache(tmp_path, 2 * size + SIZE)
    tight.put("newest", {"examples": TABLE}, {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newest", "old"]
    small = TableCache(tmp_path, SIZE)
    assert small.put("last", {"examples": TABLE}, {}).tables["examples"] == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert mapped == TABLE  # the file is gone, not what was mapped


def test_what_killed_processes_were_writing_leaves(tmp_path):
    (tmp_path / "being-written-abc").mkdir(parents=True)
    (tmp_path / "being-written-now").mkdir()
    os.utime(tmp_path / "being-written-abc", (1, 1))
    TableCache(tmp_path, 10**9).put("key", {"examples": TABLE}, {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["being-written-now", "key"]


def test_what_cannot_be_kept_is_used_and_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    occupied = TableCache(tmp_path / "file", 10**9)
    small = TableCache(tmp_path / "small", SIZE - 1)
    full = TableCache(tmp_path / "full", 10**9)
    made = {"examples": TABLE}

    assert occupied.put("key", made, {}).tables == made
    assert occupied.notes == (
        f"Prepared data could not be kept in {tmp_path / 'file'} (File exists), so the next run "
        "prepares it again (data.cache_directory).",
    )
    assert small.put("key", made, {}).tables == made and "data.cache_bytes is" in small.notes[0]

    def write(table, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_cache, "_write", write)
    assert full.put("key", made, {}).tables == made
    assert "(No space left on device)" in full.notes[0]
    assert not list((tmp_path / "full").iterdir())


def test_no_budget_keeps_nothing_and_says_nothing(tmp_path):
    cache = TableCache(tmp_path / "kept", 0)

    assert cache.put("key", {"examples": TABLE}, {}).tables == {"examples": TABLE}
    assert cache.get("key") is None and cache.notes == () and not cache.directory.exists()


def test_another_process_may_keep_the_same_meanwhile(cache, monkeypatch):
    write = table_cache._write

    def keep_first(table, path):
        monkeypatch.setattr(table_cache, "_write", write)
        TableCache(cache.directory, 10**9).put("key", {"examples": TABLE}, {"by": "other"})
        write(table, path)

    monkeypatch.setattr(table_cache, "_write", keep_first)
    assert cache.put("key", {"examples": TABLE}, {"by": "this"}).facts == {"by": "other"}
    assert cache.notes == ()


def test_a_recipe_names_the_directory_and_the_budget(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    given = DataConfig(train="a.csv", cache_directory="/x/y", cache_bytes=7)

    assert TableCache.of(DataConfig(train="a.csv")).directory == tmp_path / "data"
    assert (str(TableCache.of(given).directory), TableCache.of(given).budget_bytes) == ("/x/y", 7)


def test_a_spool_leaves_no_file_and_works_without_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool()
    kept = [spool.keep(TABLE), spool.keep(TABLE[:1])]

    assert kept == [TABLE, TABLE[:1]] and not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert spool.keep(TABLE) is TABLE
