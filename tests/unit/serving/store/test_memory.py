"""Who leaves when room is needed."""

import pytest

from lorakit.errors import AdapterMemoryError
from lorakit.serving.store.memory import AdapterMemory, CarriedVersion


def version(key, size=10, leases=0):
    return CarriedVersion(key, f"{key}-carried", key, size, leases)


def filled(limit, *versions):
    memory = AdapterMemory(limit)
    for one in versions:
        assert memory.make_room(one.bytes, ()) == []
        memory.add(one)
    return memory


def test_the_least_recently_used_leave_and_only_as_many_as_needed():
    memory = filled(30, version("a"), version("b"), version("c"))
    memory.use("a")
    assert [one.name for one in memory.make_room(15, ())] == ["b", "c"]
    assert memory.bytes_in_use == 25
    assert "a" in memory and "b" not in memory


def test_those_in_use_and_pinned_stay():
    memory = filled(30, version("a", leases=1), version("b"), version("c"))
    assert memory.make_room(20, {"b"}) is None
    assert memory.bytes_in_use == 30
    assert [one.name for one in memory.make_room(10, {"b"})] == ["c"]


def test_without_a_limit_nobody_leaves():
    memory = filled(None, version("a"), version("b"))
    assert memory.make_room(10**12, ()) == []
    memory.require_possible("c", 10**15, ())


def test_what_cannot_fit_is_refused_with_numbers():
    memory = filled(30, version("a"), version("b"))
    with pytest.raises(AdapterMemoryError, match=r"'big'.*got 31 bytes, expected at most 30"):
        memory.require_possible("big", 31, ())
    with pytest.raises(
        AdapterMemoryError, match="got 25 bytes, expected at most 20, as pinned adapters take 10"
    ):
        memory.require_possible("big", 25, {"a"})
    memory.require_possible("big", 20, {"a"})


def test_reserved_bytes_come_back():
    memory = filled(30, version("a"))
    leaving = memory.make_room(25, ())
    memory.undo_room(25, leaving)
    assert memory.bytes_in_use == 10 and "a" in memory


def test_versions_that_nobody_knows_any_more_are_taken_out_unless_in_use():
    memory = filled(None, version("a"), version("b", leases=1), version("c"))
    assert [one.name for one in memory.take_unknown({"c"})] == ["a"]
    assert "b" in memory and "c" in memory


def test_looking_is_not_using():
    memory = filled(20, version("a"), version("b"))
    assert memory.get("a").name == "a" and memory.get(None) is None and memory.get("z") is None
    assert memory.use("z") is None
    assert [one.name for one in memory.make_room(10, ())] == ["a"]
