import os
import stat
import threading
import time
from pathlib import Path

import pytest

from lorakit.errors import OutputExistsError
from lorakit.files import atomic
from lorakit.files.atomic import (
    creating_directory,
    replacing_directory,
    replacing_file,
    replacing_files,
    require_new_directory,
    write_text,
)


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
    with creating_directory(target) as temporary:
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
    with creating_directory(target) as temporary:
        (temporary / "one").write_text("1")
    assert names(target) == ["one"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    for number, place in enumerate(("empty", "new")):
        link = tmp_path / f"link-{number}"
        link.symlink_to(tmp_path / place)
        with creating_directory(link) as temporary:
            (temporary / "one").write_text("1")
        with replacing_directory(link) as temporary:
            (temporary / "two").write_text("2")
        assert names(link) == ["two"] and link.is_symlink()


def test_a_place_for_a_new_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("full/one").mkdir(parents=True)
    Path("empty").mkdir()
    for free in ("new", "empty", "full/two", "empty/a/b", str(tmp_path / "new")):
        require_new_directory(Path(free), "it")
    for taken, why in (("file", "it is"), ("file/a/b", "file is"), ("full", "it holds files")):
        with pytest.raises(OutputExistsError, match=f"^Cannot write it to {taken}: {why}"):
            require_new_directory(Path(taken), "it")


def test_a_failing_block_leaves_no_directory(tmp_path):
    with pytest.raises(ValueError), creating_directory(tmp_path / "b") as temporary:
        (temporary / "one").write_text("1")
        raise ValueError
    assert names(tmp_path) == []


def test_a_directory_with_files_is_never_replaced(tmp_path):
    target = tmp_path / "b"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(OSError), creating_directory(target) as temporary:
        (temporary / "one").write_text("1")
    assert names(target) == ["mine"]
    assert names(tmp_path) == ["b"]


def test_files_are_replaced_in_order_once_all_are_complete(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    moved = []

    def replace(source, target):
        assert [p.read_text() for p in temporaries if p.exists()][-1] == "new second"
        moved.append(target)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with replacing_files(first, second) as temporaries:
        for temporary, text in zip(temporaries, ("new first", "new second"), strict=True):
            temporary.write_text(text)
    assert moved == [first, second]
    assert names(tmp_path) == ["first", "second"]


@pytest.mark.parametrize("files", [{"a": "1"}, {"a": "2", "b": "2", "sub/c": "2"}])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_directory_takes_the_place_of_another(tmp_path, monkeypatch, files, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    target = tmp_path / "adapter"
    (target / "sub").mkdir(parents=True)
    for name in ("a", "old", "sub/old"):
        (target / name).write_text("old")
    with replacing_directory(target, last=("a",)) as temporary:
        for name, text in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text)
        assert (target / "a").read_text() == "old"
    found = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()}
    assert found == files
    assert names(tmp_path) == ["adapter"]


def test_a_directory_that_is_not_there_appears(tmp_path):
    with replacing_directory(tmp_path / "a" / "b") as temporary:
        (temporary / "one").write_text("1")
    assert names(tmp_path / "a" / "b") == ["one"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_whoever_is_killed_while_directories_are_replaced_leaves_one_in_place(
    tmp_path, monkeypatch, can_exchange
):
    """At each move the directory has its last file, old or new, and what comes before it."""
    target = tmp_path / "adapter"
    target.mkdir()
    for name in ("tokenizer", "weights", "config"):
        (target / name).write_text("old")
    seen = []

    def replace(source, target_file):
        seen.append([(target / n).read_text() for n in ("tokenizer", "weights", "config")])
        os.rename(source, target_file)

    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", replace)
    with replacing_directory(target, last=("weights", "config")) as temporary:
        for name in ("tokenizer", "weights", "config"):
            (temporary / name).write_text("new")
    old, new = "old", "new"
    steps = [[old, old, old], [new, old, old], [new, new, old]]
    assert seen == ([] if can_exchange else steps)
    assert (target / "config").read_text() == "new"


def test_files_in_a_directory_get_the_permissions_of_ordinary_ones(tmp_path):
    with creating_directory(tmp_path / "made") as temporary:
        (temporary / "private").touch(mode=0o600)
    (tmp_path / "ordinary").write_text("x")
    modes = {
        stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "made/private", tmp_path / "ordinary")
    }
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127])
def test_a_name_may_be_as_long_as_the_system_has_it(tmp_path, name):
    write_text(tmp_path / name, "text")
    with creating_directory(tmp_path / name[:-1]):
        pass
    assert len(names(tmp_path)) == 2


def test_writers_of_the_same_files_take_turns(tmp_path, monkeypatch):
    files = [tmp_path / "one", tmp_path / "two"]
    has_moved_one, move = threading.Event(), os.replace

    def move_and_wait(source, target):
        move(source, target)
        if threading.current_thread() is first and target == files[0]:
            has_moved_one.set()
            time.sleep(0.3)

    def write(text):
        with replacing_files(*files) as made:
            for file in made:
                file.write_text(text)

    monkeypatch.setattr(os, "replace", move_and_wait)
    first = threading.Thread(target=write, args=("first",))
    first.start()
    has_moved_one.wait()
    write("second")
    first.join()
    assert [file.read_text() for file in files] == ["second", "second"]
