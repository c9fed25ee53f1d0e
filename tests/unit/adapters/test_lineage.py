"""What an adapter records about where it comes from."""

import pytest

from lorakit.adapters.lineage import (
    Ancestor,
    DataSource,
    Lineage,
    adapter_sha256,
    common_lineage,
    data_source,
)
from lorakit.errors import AdapterMismatchError
from lorakit.files.content_digests import file_sha256


def test_each_adapter_comes_before_its_parents_with_its_data():
    data = (DataSource(name="a.csv", sha256="1"),)
    first = Lineage(data=data)
    second = Lineage(data=(DataSource(name="hub/data"),), parents=first.add_parent("one", "aa"))
    assert second.add_parent("two", "bb") == (
        Ancestor(name="two", sha256="bb", data=(DataSource(name="hub/data", sha256=None),)),
        Ancestor(name="one", sha256="aa", data=data),
    )


def test_data_of_this_machine_has_a_digest_and_that_of_the_hub_has_none(tmp_path):
    (tmp_path / "rows.csv").write_text("text\n")
    there = data_source(str(tmp_path / "rows.csv"))
    assert there.sha256 == file_sha256(tmp_path / "rows.csv")
    assert data_source("owner/data") == DataSource(name="owner/data")


def test_the_file_of_tensors_identifies_an_adapter(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"tensors")
    assert adapter_sha256(tmp_path) == file_sha256(tmp_path / "adapter_model.safetensors")


def test_a_combination_is_made_from_what_all_its_adapters_are_made_from():
    first, second = DataSource(name="a.csv", sha256="1"), DataSource(name="b.csv", sha256="2")
    parents = (Ancestor(name="one", sha256="aa"),)
    a = Lineage(base_digest="d", data=(first,), parents=parents)
    b = Lineage(data=(second, first), parents=parents)
    made = common_lineage({"a": a, "b": b, "c": None})
    assert made == Lineage(base_digest="d", data=(first, second), parents=parents)
    assert common_lineage({"a": None}) is None


def test_adapters_of_bases_with_different_weights_are_not_combined_unless_a_base_is_named():
    both = {"a": Lineage(base_digest="1" * 64), "b": Lineage(base_digest="2" * 64)}
    with pytest.raises(AdapterMismatchError, match=r"1{12} in a, 2{12} in b, expected one"):
        common_lineage(both)
    assert common_lineage(both, "owner/base") == Lineage()
