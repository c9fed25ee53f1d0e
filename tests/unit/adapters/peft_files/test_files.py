import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lorakit.adapters.peft_files import files
from lorakit.adapters.peft_files.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_adapter_files,
    read_adapter_header,
    write_adapter_files,
)
from lorakit.errors import AdapterFileError, LorakitError, MissingFileError, OutputExistsError
from lorakit.files.tensor_files import write_safetensors

VALUES = {"peft_type": "LORA", "r": 2, "words": "ä"}


def tensors(value=1.0):
    return {"b": torch.full((2, 3), value), "a": torch.arange(4, dtype=torch.bfloat16)}


def names(path):
    return sorted(p.name for p in path.iterdir())


def refused(error, path):
    with pytest.raises(error) as caught:
        read_adapter_files(path)
    assert isinstance(caught.value, LorakitError) and caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def saved(tmp_path):
    write_adapter_files(tmp_path / "adapter", VALUES, tensors())
    return tmp_path / "adapter"


def test_round_trip(saved):
    values, read, where, _ = read_adapter_files(saved)
    assert values == VALUES and where == str(saved)
    assert all(torch.equal(read[k], t) and read[k].dtype == t.dtype for k, t in tensors().items())
    assert names(saved) == [CONFIG_FILE, WEIGHTS_FILE]
    assert read_adapter_files(str(saved))[0] == VALUES


def test_the_header_alone(saved):
    values, entries = read_adapter_header(saved)
    read = read_adapter_files(saved)
    assert values == read.values
    assert {k: e.shape for k, e in entries.items()} == {
        k: tuple(tensor.shape) for k, tensor in read.tensors.items()
    }
    (saved / WEIGHTS_FILE).write_bytes(b"short")
    with pytest.raises(AdapterFileError, match="expected a complete safetensors file"):
        read_adapter_header(saved)
    (saved / WEIGHTS_FILE).unlink()
    with pytest.raises(MissingFileError, match="No adapter_model"):
        read_adapter_header(saved)


def test_the_paths_written_are_returned(tmp_path):
    written = write_adapter_files(tmp_path / "x" / "y", VALUES, tensors())
    assert sorted(written) == sorted((tmp_path / "x" / "y").iterdir())


def test_shared_strided_and_empty_tensors(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    given = {"whole": whole, "view": whole[1:], "t": whole.t(), "same": whole, "no": whole[:0]}
    write_adapter_files(tmp_path / "a", VALUES, given)
    read = load_file(tmp_path / "a" / WEIGHTS_FILE)
    assert all(torch.equal(read[k], t) for k, t in given.items())


def test_an_existing_directory_keeps_its_other_files(saved):
    (saved / "tokenizer.json").write_text("{}")
    write_adapter_files(saved, VALUES | {"r": 3}, tensors(2.0))
    assert names(saved) == [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"]
    values, read, *_ = read_adapter_files(saved)
    assert values["r"] == 3 and read["b"][0, 0] == 2.0


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(OutputExistsError) as caught:
        write_adapter_files(tmp_path / "adapter", VALUES, tensors())
    assert str(caught.value) == (
        f"Cannot save an adapter to {tmp_path / 'adapter'}: it is a file, expected a "
        "directory. Choose another path."
    )
    assert names(tmp_path) == ["adapter"] and (tmp_path / "adapter").read_text() == "mine"


class TestMissing:
    def test_no_directory_with_and_without_a_near_name(self, saved, tmp_path):
        assert refused(MissingFileError, tmp_path / "adaptor") == (
            f"There is no adapter directory {tmp_path / 'adaptor'}. Did you mean 'adapter'? "
            "Check the path."
        )
        assert refused(MissingFileError, tmp_path / "zz") == (
            f"There is no adapter directory {tmp_path / 'zz'}. Check the path."
        )
        assert refused(MissingFileError, tmp_path / "adaptor" / "yy") == (
            f"There is no adapter directory {tmp_path / 'adaptor' / 'yy'}: {tmp_path / 'adaptor'} "
            "does not exist. Did you mean 'adapter'? Check the path."
        )

    def test_a_file_of_the_adapter_is_named(self, saved):
        assert refused(MissingFileError, saved / WEIGHTS_FILE) == (
            f"{saved / WEIGHTS_FILE} is a file, expected the directory that holds {CONFIG_FILE} "
            f"and {WEIGHTS_FILE}. Name {saved} instead."
        )

    @pytest.mark.parametrize("gone", [CONFIG_FILE, WEIGHTS_FILE])
    def test_one_file_is_missing(self, saved, gone):
        (saved / gone).unlink()
        assert refused(MissingFileError, saved) == (
            f"No {gone} in {saved}, expected both files of an adapter. Name the directory that "
            "holds them."
        )

    def test_adapters_lie_in_sub_folders(self, saved):
        folder = saved.parent
        write_adapter_files(folder / "other", VALUES, tensors())
        assert refused(MissingFileError, folder) == (
            f"No {CONFIG_FILE} and no {WEIGHTS_FILE} in {folder}, expected both files of an "
            "adapter. Sub-folders that hold an adapter: adapter, other. Name one of them."
        )

    def test_only_a_pickle(self, saved):
        (saved / WEIGHTS_FILE).rename(saved / "adapter_model.bin")
        text = refused(MissingFileError, saved)
        assert "adapter_model.bin is a pickle, which can run code when read" in text
        assert "lorakit convert --allow-pickle" in text

    def test_a_hub_name_offline(self):
        text = refused(MissingFileError, "some-owner/some-adapter")
        assert text.startswith(
            "No adapter at 'some-owner/some-adapter': it is not a local directory, and "
            "fetching it from the Hugging Face hub failed ("
        )
        assert text.endswith("Check the name and the network, or name a local directory.")

    def test_a_mistyped_folder_is_not_asked_of_the_hub(self, saved, monkeypatch):
        monkeypatch.chdir(saved.parent.parent)
        mistyped = f"{saved.parent.name}/adaptr"
        assert refused(MissingFileError, mistyped) == (
            f"There is no adapter directory {mistyped}. Did you mean 'adapter'? Check the path."
        )


class TestDamaged:
    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_a_truncated_weights_file(self, saved, keep):
        file = saved / WEIGHTS_FILE
        file.write_bytes(file.read_bytes()[:keep])
        text = refused(AdapterFileError, saved)
        assert text.startswith(f"Cannot read {file}: ")
        assert "expected a complete safetensors file" in text

    @pytest.mark.parametrize("content", [b"PK\x03\x04" * 100, b"\x80\x02}q\x00." * 50, b"{}" * 20])
    def test_another_kind_of_file(self, saved, content):
        (saved / WEIGHTS_FILE).write_bytes(content)
        assert "expected a complete safetensors file" in refused(AdapterFileError, saved)

    @pytest.mark.parametrize("content", [b"", b"{", b'{"r": }', b"\xff\xfe\x00"])
    def test_broken_json(self, saved, content):
        (saved / CONFIG_FILE).write_bytes(content)
        text = refused(AdapterFileError, saved)
        assert text.startswith(f"Cannot read {saved / CONFIG_FILE}: ")
        assert "expected a JSON object" in text

    @pytest.mark.parametrize("content", ["[]", "3", "null"])
    def test_json_that_is_no_object(self, saved, content):
        (saved / CONFIG_FILE).write_text(content)
        kind = type(json.loads(content)).__name__
        assert f"got a {kind}, expected a JSON object" in refused(AdapterFileError, saved)


def save_and_be_killed(where, target):
    """Run a save in a forked process that kills itself with signal 9 at the place named."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path, *arguments):
        write_safetensors(path, *arguments)
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])
        die()

    child = os.fork()
    if child == 0:
        try:
            if where == "in the configuration":
                files.json = SimpleNamespace(dumps=die)
            else:
                files.write_safetensors = die if where == "before the weights" else write_half
            write_adapter_files(target, {"r": 9}, {"b": torch.zeros(7)})
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("where", ["before the weights", "in the weights", "in the configuration"])
def test_killed_in_the_middle_of_a_save(tmp_path, where, there_before):
    """The old adapter stays whole, and no half file has a final name."""
    target = tmp_path / "adapter"
    if there_before:
        write_adapter_files(target, VALUES, tensors())
    save_and_be_killed(where, target)
    if there_before:
        values, read, *_ = read_adapter_files(target)
        assert values == VALUES
        assert torch.equal(read["b"], tensors()["b"])
    else:
        assert not target.exists()
        assert all(name.startswith(".") for name in names(tmp_path))


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("fails", ["write_safetensors", "json"])
def test_an_error_in_the_middle_of_a_save_leaves_nothing(
    tmp_path, monkeypatch, fails, there_before
):
    from lorakit.adapters.peft_files import files

    target = tmp_path / "adapter"
    if there_before:
        write_adapter_files(target, VALUES, tensors())

    def fail(*_, **__):
        raise OSError("No space left on device")

    if fails == "json":
        monkeypatch.setattr(files, "json", SimpleNamespace(dumps=fail))
    else:
        monkeypatch.setattr(files, "write_safetensors", fail)
    with pytest.raises(OSError, match="No space left"):
        write_adapter_files(target, {"r": 9}, {"b": torch.zeros(7)})
    monkeypatch.undo()
    if there_before:
        assert names(target) == [CONFIG_FILE, WEIGHTS_FILE]
        assert read_adapter_files(target)[0] == VALUES
        assert torch.equal(read_adapter_files(target)[1]["b"], tensors()["b"])
    else:
        assert list(Path(tmp_path).iterdir()) == []


class TestPickles:
    @pytest.fixture
    def pickled(self, tmp_path):
        folder = tmp_path / "pickled"
        write_adapter_files(folder, VALUES, tensors())
        (folder / WEIGHTS_FILE).unlink()
        torch.save(tensors(), folder / "adapter_model.bin")
        return folder

    def test_they_are_read_where_that_is_allowed(self, pickled):
        _, read, *_ = read_adapter_files(pickled, allow_pickle=True)
        assert read.keys() == tensors().keys()
        assert all(torch.equal(tensor, tensors()[key]) for key, tensor in read.items())
        assert "--allow-pickle" in refused(MissingFileError, pickled)

    def test_safetensors_come_first(self, pickled):
        write_adapter_files(pickled, VALUES, tensors())
        (pickled / "adapter_model.bin").write_bytes(b"damaged")
        read_adapter_files(pickled, allow_pickle=True)
