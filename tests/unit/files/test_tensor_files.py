import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.files import tensor_files
from lorakit.files.tensor_files import (
    FileChangedError,
    has_unusable_numbers,
    has_usable_numbers,
    read_entries,
    read_safetensors,
    write_safetensors,
)

DTYPES = (*(torch.float64, torch.float32, torch.float16, torch.bfloat16), torch.int64, torch.bool)


def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {str(d): torch.randn(3, 5, generator=generator).to(d) for d in DTYPES}
    return made | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "ä.weight": torch.ones(1),
    }


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])


def test_files_are_those_of_the_format(tmp_path):
    write_safetensors(tmp_path / "ours", tensors(), {"format": "pt", "more": "ä"})
    same(load_file(tmp_path / "ours"), tensors())
    save_file(tensors(), tmp_path / "theirs", metadata={"format": "pt"})
    read = read_safetensors(tmp_path / "theirs")
    same(read.tensors, tensors())
    assert read.metadata == {"format": "pt"}
    same(read_safetensors(tmp_path / "ours").tensors, tensors())
    assert read_safetensors(tmp_path / "ours").metadata["more"] == "ä"


def test_the_same_tensors_give_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from lorakit.files.tensor_files import *\n"
        "write_safetensors(Path(sys.argv[1]), {'b': torch.ones(2), 'a': torch.ones(3)},"
        " {'y': '1', 'x': '2', 'z': '3'})"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "one"], check=True)
    ordered = {"a": torch.ones(3), "b": torch.ones(2)}
    write_safetensors(tmp_path / "two", ordered, {"y": "1", "x": "2", "z": "3"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_share_no_memory(tmp_path):
    write_safetensors(tmp_path / "x", {"a": torch.ones(4), "b": torch.zeros(4)}, {})
    read = read_safetensors(tmp_path / "x").tensors
    assert len({tensor.untyped_storage().data_ptr() for tensor in read.values()}) == 2
    assert all(tensor.untyped_storage().nbytes() == 16 for tensor in read.values())


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes):
    return {"a": {**ONE, **changes}}


DAMAGED = {
    "empty": (b"", "it is empty"),
    "three bytes": (b"abc", "it has 3 bytes, and its header would take"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a huge header": (file_of(b"{}", length=2**63), "its header would take 9,223,372,036,854"),
    "a longer header": (file_of(b"{}", length=50), "it has 18 bytes, and its header would take 58"),
    "no JSON": (file_of(b"PK\3\4zip"), "not UTF-8|Expecting value"),
    "a list": (file_of([ONE]), "got a list"),
    "twice": (
        file_of(b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}"),
        "the key 'a' is repeated",
    ),
    "metadata": (file_of({"__metadata__": {"x": 1}, "a": ONE}), "__metadata__ in its header"),
    "metadata is a list": (file_of({"__metadata__": [], "a": ONE}), "__metadata__ in its header"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "without exactly dtype, shape"),
    "more keys": (file_of(entry(more=1)), "without exactly dtype, shape and data_offsets"),
    "a number": (file_of({"a": 3}), "'a' without exactly dtype"),
    "unsigned": (file_of(entry(dtype="U32")), "'a' is of dtype 'U32', which is not one of F64"),
    "float8": (file_of(entry(dtype="F8_E4M3", data_offsets=[0, 2])), "'F8_E4M3'"),
    "complex": (file_of(entry(dtype="C64")), "'C64'"),
    "no dtype": (file_of(entry(dtype=None)), "'None'"),
    "dtype is a list": (file_of(entry(dtype=["F32"])), "which is not one of"),
    "negative shape": (file_of(entry(shape=[-2])), "not whole numbers from 0"),
    "fractions": (file_of(entry(shape=[2.0])), "not whole numbers from 0"),
    "booleans": (file_of(entry(shape=[True])), "not whole numbers from 0"),
    "three offsets": (file_of(entry(data_offsets=[0, 4, 8])), "not whole numbers from 0"),
    "negative offsets": (file_of(entry(data_offsets=[-8, 0])), "not whole numbers from 0"),
    "backwards": (file_of(entry(data_offsets=[8, 0])), "does not lie inside the file"),
    "beyond the end": (file_of(entry(shape=[4], data_offsets=[0, 16])), "does not lie inside"),
    "far beyond": (file_of(entry(data_offsets=[0, 10**4000])), "does not lie inside"),
    "other bytes": (file_of(entry(shape=[1])), "'a' has 8 bytes, but its dtype F32 and shape [1] "),
    "many elements": (file_of(entry(shape=[2**40, 2**40])), "has an impossible shape"),
    "many and none": (file_of(entry(shape=[0, 2**62, 8], data_offsets=[0, 0])), "impossible shape"),
    "many dimensions": (file_of(entry(shape=[1] * 300 + [2])), "has an impossible shape"),
    "overlap": (
        file_of({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12),
        "'b' overlaps another tensor",
    ),
    "one place for two": (file_of({"a": ONE, "b": ONE}), "'b' overlaps another tensor"),
    "a hole": (file_of({"a": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12), "after unused bytes"),
    "bytes left over": (file_of({"a": ONE}, b"\0" * 20), "take 8 bytes, and it has 20 for them"),
    "no tensor but bytes": (file_of({}), "take 0 bytes, and it has 8 for them"),
    "a long name": (file_of({"a" * 9000: ONE}), "has 9,000 characters, too many"),
    "control characters": (file_of({"a\x1b[0m": ONE}), "has control characters"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    data, reason = DAMAGED[case]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_safetensors(tmp_path / "x")
    text = str(caught.value)
    assert any(words in text for words in reason.split("|")), text
    assert len(text) < 300 and "\n" not in text


def test_every_cut_is_noticed(tmp_path):
    write_safetensors(tmp_path / "x", {"a": torch.ones(3), "b": torch.ones(2, 2)}, {"m": "1"})
    whole = (tmp_path / "x").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(ValueError):
            read_safetensors(tmp_path / "x")


def test_a_file_beyond_memory_is_refused(tmp_path):
    size = 2**42
    header = {"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    with (tmp_path / "x").open("wb") as file:
        file.write(file_of(header, b""))
        file.truncate(file.tell() + size)
    with pytest.raises(ValueError, match="bytes of memory are free on this machine"):
        read_safetensors(tmp_path / "x")


def test_a_file_that_is_replaced_meanwhile_is_read_to_its_end(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "x", {"a": torch.ones(3)}, {})
    write_safetensors(tmp_path / "new", {"longer.name": torch.zeros(50), "a": torch.zeros(9)}, {})
    header = tensor_files._header

    def then_replaced(*arguments):
        found = header(*arguments)
        os.replace(tmp_path / "new", tmp_path / "x")
        return found

    monkeypatch.setattr(tensor_files, "_header", then_replaced)
    same(read_safetensors(tmp_path / "x").tensors, {"a": torch.ones(3)})


def test_a_file_that_is_written_to_meanwhile_is_not_taken(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "x", {"a": torch.ones(3)}, {})
    header = tensor_files._header

    def then_written_to(*arguments):
        found = header(*arguments)
        with (tmp_path / "x").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\1\2\3\4")
        os.utime(tmp_path / "x", ns=(1, 1))
        return found

    monkeypatch.setattr(tensor_files, "_header", then_written_to)
    with pytest.raises(FileChangedError):
        read_safetensors(tmp_path / "x")


def test_the_header_tells_dtypes_and_shapes(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.ones(0)}
    write_safetensors(path, tensors, {})
    entries = read_entries(path)
    assert {n: (e.dtype, e.shape, e.elements) for n, e in entries.items()} == {
        "a": (torch.float32, (2, 3), 6),
        "b": (torch.bfloat16, (4,), 4),
        "c": (torch.float32, (0,), 0),
    }
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ValueError, match="does not lie inside the file"):
        read_entries(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_usable_numbers_are_finite_and_below_the_bound(value):
    assert has_usable_numbers(torch.tensor([1e3, -1e3])) and has_usable_numbers(torch.empty(0))
    assert has_usable_numbers(torch.tensor([1 << 40]))
    for dtype in (torch.float32, torch.bfloat16):
        assert not has_usable_numbers(torch.tensor([0.0, value], dtype=dtype))


def test_one_unusable_tensor_makes_a_file_unusable(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"a": torch.ones(2)}, path)
    assert not has_unusable_numbers(path)
    save_file({"a": torch.ones(2), "b": torch.tensor([0.0, float("nan")])}, path)
    assert has_unusable_numbers(path)
