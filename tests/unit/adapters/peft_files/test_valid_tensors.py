"""The tensors that an adapter's files may hold, and pickles."""

import pytest
import torch

from lorakit.adapters.peft_files.valid_tensors import load_pickle, require_savable, require_valid
from lorakit.errors import AdapterFileError, AdapterStateError

INFINITE = torch.tensor([1.0, float("inf")])


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("q.lora_A.weight", torch.tensor([1.0, float("nan"), float("inf")]), "has NaN"),
        ("q.lora_A.weight", INFINITE.bfloat16(), "has infinite values"),
        ("q.lora_A.weight", torch.ones(2, dtype=torch.int64), "is of int64"),
        ("trainable_tokens_delta", torch.ones(2, dtype=torch.bool), "is of bool"),
        ("head.mean", torch.ones(2, dtype=torch.complex64), "is of complex64"),
    ],
)
def test_what_is_no_finite_number_is_named(name, tensor, problem):
    said = f"'{name}' {problem}; expected finite numbers in float16, bfloat16, float32 or float64."
    with pytest.raises(AdapterFileError) as caught:
        require_valid({"fine": torch.ones(1), name: tensor}, "x.safetensors")
    assert f"Cannot use the tensors in x.safetensors: {said}" in str(caught.value)
    with pytest.raises(AdapterStateError) as caught:
        require_savable({name: tensor}, "folder")
    assert f"Cannot save the adapter to folder: {said} Nothing was written." in str(caught.value)


def test_finite_numbers_whose_sum_is_not_are_valid():
    tensors = {"q.lora_A.weight": torch.full((9,), 6e4, dtype=torch.float16)}
    assert tensors["q.lora_A.weight"].sum().isinf()
    require_valid(tensors, "x")


def test_counters_of_heads_and_empty_tensors_are_valid():
    tensors = {"head.num_batches_tracked": torch.tensor(3), "q.lora_B.weight": torch.ones(0, 4)}
    require_valid(tensors, "x")
    require_savable(tensors, "x")


class Touched:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(path):
    with pytest.raises(AdapterFileError) as caught:
        load_pickle(path, allow_pickle=True)
    return str(caught.value)


class TestPickles:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "adapter_model.bin"

    def test_they_are_read_where_that_is_allowed(self, path):
        torch.save({"x": torch.nn.Parameter(torch.arange(3.0))}, path)
        tensor = load_pickle(path, allow_pickle=True)["x"]
        assert tensor.tolist() == [0, 1, 2] and not tensor.requires_grad
        with pytest.raises(AdapterFileError, match="it is a pickle, expected safetensors"):
            load_pickle(path, allow_pickle=False)

    def test_code_in_them_is_not_run(self, path, tmp_path):
        torch.save({"x": Touched(tmp_path / "trace")}, path)
        assert "expected a pickle of tensors only" in refused(path)
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        ("values", "what"),
        [
            ([torch.ones(1)], "a list"),
            ({"x": 1}, "a int at 'x'"),
            ({1: torch.ones(1)}, "a int as a name"),
            ({"x" * 5000: torch.ones(1)}, "a name of 5,000 characters"),
            ({"a\x1bb": torch.ones(1)}, "control characters in the name 'a\\x1bb'"),
            ({"x": torch.ones(1).to_sparse()}, "a tensor that is sparse, quantized or without"),
            ({"x": torch.ones(1).expand(9)}, "a tensor that repeats its memory at 'x'"),
        ],
    )
    def test_other_things_in_them_are_refused(self, path, values, what):
        torch.save(values, path)
        assert f"got {what}" in refused(path) and "expected tensors by name" in refused(path)

    @pytest.mark.parametrize("content", [b"damaged", b"", b"version https://git-lfs.github.com/s"])
    def test_another_kind_of_file(self, path, content):
        path.write_bytes(content)
        assert refused(path).startswith(f"Cannot read {path}: ")
