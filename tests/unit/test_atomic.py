import os
import stat

import pytest

from lorakit.atomic import appearing_directory, replacing_file, write_text


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "out.txt"
    with replacing_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == tmp_path  # os.replace does not cross file systems
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.txt"]


def test_a_failing_block_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_file(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_replacing_an_existing_file(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("a longer old text")
    write_text(target, "näw")
    assert target.read_bytes() == "näw".encode()


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with target.open() as reader:
        write_text(target, "new")
        assert reader.read() == "old"


def test_a_file_gets_the_permissions_of_an_ordinary_one(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    write_text(tmp_path / "atomic", "x")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE(
        ordinary.stat().st_mode
    )


def test_writer_that_replaces_the_temporary_file_itself(tmp_path):
    # safetensors renames its own file over the path it is given.
    target = tmp_path / "out.txt"
    with replacing_file(target) as temporary:
        other = tmp_path / "other"
        other.write_text("renamed")
        os.replace(other, temporary)
    assert target.read_text() == "renamed"
    assert names(tmp_path) == ["out.txt"]


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "a" / "b"
    with appearing_directory(target) as temporary:
        (temporary / "one").write_text("1")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "two").write_text("2")
        assert not target.exists()
    assert names(target) == ["one", "sub"]
    assert names(tmp_path / "a") == ["b"]
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_an_empty_directory_is_filled(tmp_path):
    target = tmp_path / "b"
    target.mkdir()
    with appearing_directory(target) as temporary:
        (temporary / "one").write_text("1")
    assert names(target) == ["one"]


def test_a_failing_block_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError), appearing_directory(tmp_path / "b") as temporary:
        (temporary / "one").write_text("1")
        raise ValueError
    assert names(tmp_path) == []


def test_a_directory_with_files_is_never_replaced(tmp_path):
    target = tmp_path / "b"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(OSError), appearing_directory(target) as temporary:
        (temporary / "one").write_text("1")
    assert names(target) == ["mine"]
    assert names(tmp_path) == ["b"]
