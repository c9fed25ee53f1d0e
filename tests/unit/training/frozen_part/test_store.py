"""Hidden states on disk: what comes back, what leaves, and what is computed again."""

import sqlite3

import pytest
import torch

from lorakit.training.frozen_part.store import HiddenStates

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def states(seed=0, tokens=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 8, generator=generator).to(dtype)


@pytest.fixture
def opened(tmp_path):
    """Open the store of a name; all are closed at the end."""
    stores = []

    def open_store(name="base", budget_bytes=10**7, directory=tmp_path / "kept"):
        stores.append(HiddenStates(directory, name, budget_bytes))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_come_back_in_this_process_and_the_next(opened, dtype):
    one, other = states(dtype=dtype), states(1, 5, dtype)
    first = opened()
    first.put({b"one": one, b"other": other})
    for store in (first, opened()):
        found = store.get([b"one", b"other", b"unknown"])
        assert found.keys() == {b"one", b"other"}
        assert torch.equal(found[b"one"], one) and torch.equal(found[b"other"], other)
        assert store.problem is None


def test_another_name_is_another_base(opened):
    opened("a").put({b"one": states()})
    assert opened("b").get([b"one"]) == {}


def test_entries_of_earlier_runs_leave_first_and_those_of_this_run_stay(opened):
    large = {bytes([k]): states(k, 1000) for k in range(40)}
    budget = 6 * 10**5  # room for about 15 of them
    first = opened(budget_bytes=budget)
    for key, tensor in large.items():
        first.put({key: tensor})
    kept = set(first.get(list(large)))
    assert 5 < len(kept) < 40 and bytes([0]) in kept, "a full cache keeps what this run has put"
    second = opened(budget_bytes=budget)
    read = sorted(kept)[:3]
    second.get(read)
    second.put({bytes([k]): large[bytes([k])] for k in range(38, 40)})
    left = set(second.get(list(large)))
    assert set(read) <= left, "what this run has read stays"
    assert left - kept, "others made room"
    assert second.size_bytes <= budget


def test_files_of_other_bases_leave_when_together_they_exceed_the_budget(opened):
    for name in ("old", "older"):
        store = opened(name)
        store.put({b"one": states(0, 20_000)})
        store.close()
    new = opened("new", budget_bytes=10**6)
    assert len([*new.path.parent.glob("*.sqlite")]) == 3, "room is made when it is needed"
    new.put({b"one": states(0, 20_000)})
    assert new.get([b"one"])
    assert [path.name for path in new.path.parent.glob("*.sqlite")] == ["new.sqlite"]


def test_an_entry_with_other_bytes_is_unknown(opened):
    store = opened()
    store.put({b"one": states(), b"other": states(1)})
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE kept SET states = zeroblob(96) WHERE key = ?", (b"one",))
    connection.close()
    assert store.get([b"one", b"other"]).keys() == {b"other"}


@pytest.mark.parametrize("change", ["tokens = 5", "tokens = 0", "dtype = 'torch.bfloat16'"])
def test_an_entry_with_another_shape_or_dtype_is_unknown(opened, change):
    store = opened()
    store.put({b"one": states()})
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"UPDATE kept SET {change}")
    connection.close()
    assert store.get([b"one"]) == {}


def test_an_entry_under_the_key_of_another_is_unknown(opened):
    store = opened()
    store.put({b"one": states()})
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE kept SET key = ?", (b"other",))
    connection.close()
    assert store.get([b"other"]) == {}


def test_a_file_of_another_base_under_this_name_is_unknown(opened):
    store = opened("other")
    store.put({b"one": states()})
    store.close()
    store.path.rename(store.path.with_name("base.sqlite"))
    again = opened()
    assert again.get([b"one"]) == {}
    again.put({b"one": states(1)})
    assert torch.equal(again.get([b"one"])[b"one"], states(1))


def test_a_damaged_file_is_begun_anew(opened):
    store = opened()
    store.put({b"one": states(0, 20_000)})
    store.close()
    store.path.write_bytes(b"not a database" * 10_000)
    again = opened()
    assert again.get([b"one"]) == {} and again.problem is None
    again.put({b"one": states()})
    assert again.get([b"one"]).keys() == {b"one"}


def test_a_file_that_is_damaged_while_it_is_open_is_begun_anew(opened, monkeypatch):
    store = opened()
    store.put({b"one": states()})
    store._recover(sqlite3.DatabaseError("database disk image is malformed"))
    assert store.problem is None and store.get([b"one"]) == {}
    store.put({b"one": states()})
    assert store.get([b"one"]).keys() == {b"one"}


def test_a_file_with_other_tables_is_begun_anew(opened):
    store = opened()
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE kept")
        connection.execute("CREATE TABLE kept (other TEXT)")
    connection.close()
    again = opened()
    again.put({b"one": states()})
    assert again.problem is None
    again.put({b"one": states()})
    assert again.get([b"one"]).keys() == {b"one"}


def test_stores_that_are_open_at_once_share_the_budget(opened):
    both = [opened(name, budget_bytes=10**6) for name in ("half", "quarter")]
    for k in range(40):
        for store in both:
            store.put({bytes([k]): states(k, 1000)})
    assert sum(store.size_bytes for store in both) <= 10**6
    assert all(store.get([bytes([0])]) for store in both)


def test_a_full_disk_ends_the_keeping(opened):
    store = opened()
    store.put({b"one": states()})
    store._connection.execute("PRAGMA max_page_count = 4")
    store.put({bytes([k]): states(k, 20_000) for k in range(3)})
    assert store.problem == "database or disk is full"
    assert store.get([b"one"]) == {}, "it has been closed"
    store.put({b"one": states()})


def test_a_directory_that_cannot_be_made_is_a_problem_in_words(opened, tmp_path):
    (tmp_path / "file").write_text("")
    store = opened(directory=tmp_path / "file" / "kept")
    assert "Not a directory" in store.problem
    store.put({b"one": states()})
    assert store.get([b"one"]) == {} and store.size_bytes == 0
