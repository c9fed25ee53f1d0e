"""What an adapter records about where it comes from."""

from lorakit.adapters.lineage import Ancestor, DataSource, Lineage, adapter_sha256, data_source
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
