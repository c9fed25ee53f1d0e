"""`lorakit convert`: formats and ranks."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorakit import Adapter, LoraConfig, add_adapter, save_adapter
from lorakit.adapters import from_loralib, lora_state_dict, resize_adapter
from tiny_models import randomize_
from tiny_models.adapters import layered_adapter
from tolerances import TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]


@pytest.fixture
def adapted(tiny_llama_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    config = LoraConfig(
        r=4, lora_alpha=7, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}
    )
    add_adapter(model, config)
    return randomize_(model)


@pytest.fixture
def adapter_dir(adapted, tmp_path):
    save_adapter(adapted, tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    return tmp_path / "adapter"


def same_updates(first, second):
    assert first.factors.keys() == second.factors.keys()
    for path in first.factors:
        assert largest_error(first.delta_weight(path), second.delta_weight(path)) < EXACT


def test_to_another_rank(cli, adapter_dir, tmp_path):
    output = tmp_path / "out"
    result = cli("convert", adapter_dir, output, "--rank", 1)
    assert result.exit_code == 0, result.stderr
    expected = resize_adapter(Adapter.load(adapter_dir), 1)
    same_updates(Adapter.load(output), expected.adapter)
    words = " ".join(result.stdout.split())
    assert f"{100 * expected.error:.3g}% in total, largest " in words
    assert (output / "tokenizer.json").read_text() == "{}"
    assert result.stdout.splitlines()[-1].strip().startswith(f"lorakit inspect {output}")


def test_to_portable(cli, adapter_dir, tmp_path):
    result = cli("convert", adapter_dir, tmp_path / "out", "--to", "portable")
    assert result.exit_code == 0, result.stderr
    values = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert values["lora_alpha"] == values["r"] == 4 and values["rank_pattern"] == {}
    same_updates(Adapter.load(tmp_path / "out"), Adapter.load(adapter_dir))
    assert "vllm serve" in result.stdout


def test_to_gguf(cli, adapter_dir, tmp_path):
    gguf = pytest.importorskip("gguf")
    output = tmp_path / "a.gguf"
    result = cli("convert", adapter_dir, output, "--to", "gguf", "--dtype", "float16")
    assert result.exit_code == 0, result.stderr
    reader = gguf.GGUFReader(output)
    assert len(reader.tensors) == 8 and {t.data.dtype.name for t in reader.tensors} == {"float16"}
    assert f"--lora {output}" in result.stdout
    result = cli("convert", adapter_dir, output, "--to", "gguf")
    assert result.exit_code == 2 and "it already exists" in result.stderr
    words = (tmp_path / "b.gguf", "--to", "gguf", "--base-model", tmp_path)
    result = cli("convert", adapter_dir, *words)
    assert result.exit_code == 2 and "No config.json in" in result.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_to_loralib_and_back(cli, adapter_dir, tmp_path, suffix):
    output = tmp_path / f"lora{suffix}"
    result = cli("convert", adapter_dir, output, "--to", "loralib")
    assert result.exit_code == 0, result.stderr
    tensors = load_file(output) if suffix != ".pt" else torch.load(output, weights_only=True)
    assert "model.layers.0.self_attn.q_proj.lora_A" in tensors
    words = ("convert", output, tmp_path / "back", "--base-model", "x")
    result = cli(*words)
    assert result.exit_code == 2 and "Give the --lora-alpha" in result.stderr
    words = (*words, "--lora-alpha", 7)
    if suffix == ".pt":
        result = cli(*words)
        assert result.exit_code == 2 and "it is a pickle" in result.stderr
        words = (*words, "--allow-pickle")
    result = cli(*words)
    assert result.exit_code == 0, result.stderr
    back = Adapter.load(tmp_path / "back")
    same_updates(back, Adapter.load(adapter_dir))
    assert back.base_model == "x"


def test_parts_of_a_merged_matrix(cli, tmp_path):
    tensors = {"qkv.lora_A": torch.randn(4, 6), "qkv.lora_B": torch.randn(10, 2)}
    torch.save(tensors, tmp_path / "lora.pt")
    words = ("convert", tmp_path / "lora.pt", tmp_path / "out", "--lora-alpha", 1, "--allow-pickle")
    result = cli(*words)
    assert result.exit_code == 2 and "is a MergedLinear" in result.stderr
    result = cli(*words, "--enable-lora", "true,maybe")
    assert result.exit_code == 2 and "expected true and false" in result.stderr
    result = cli(*words, "--enable-lora", "true,false,true")
    assert result.exit_code == 0, result.stderr
    expected = from_loralib(tensors, 1, enable_lora=[True, False, True])
    same_updates(Adapter.load(tmp_path / "out"), expected)


def test_one_part_of_a_merged_matrix(cli, tmp_path):
    tensors = {"qkv.lora_A": torch.randn(2, 6), "qkv.lora_B": torch.randn(5, 2)}
    torch.save(tensors, tmp_path / "lora.pt")
    torch.save(tensors | {"qkv.weight": torch.ones(15, 6)}, tmp_path / "whole.pt")
    options = (tmp_path / "out", "--lora-alpha", 1, "--allow-pickle")
    options += ("--enable-lora", "true,false,false")
    result = cli("convert", tmp_path / "lora.pt", *options)
    assert result.exit_code == 2 and "cannot tell whether qkv is a MergedLinear" in result.stderr
    result = cli("convert", tmp_path / "whole.pt", *options)
    assert result.exit_code == 0, result.stderr
    assert Adapter.load(tmp_path / "out").factors["qkv"][1].shape == (15, 2)


def test_embeddings_of_a_state_dict_are_named(cli, tmp_path):
    torch.save({"e.lora_A": torch.ones(2, 9), "e.lora_B": torch.ones(4, 2)}, tmp_path / "lora.pt")
    words = ("convert", tmp_path / "lora.pt", tmp_path / "out", "--lora-alpha", 1, "--allow-pickle")
    result = cli(*words, "--embeddings", "e,f")
    assert result.exit_code == 2 and "there is no f" in result.stderr
    assert cli(*words, "--embeddings", "e").exit_code == 0
    assert Adapter.load(tmp_path / "out").embeddings == {"e"}


def test_a_pickle_is_read_on_request_alone(cli, adapter_dir, tmp_path):
    expected = Adapter.load(adapter_dir)
    weights = adapter_dir / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter_dir / "adapter_model.bin")
    weights.unlink()
    result = cli("convert", adapter_dir, tmp_path / "out")
    assert result.exit_code == 2 and "--allow-pickle" in result.stderr
    result = cli("convert", adapter_dir, tmp_path / "out", "--allow-pickle")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out" / "adapter_model.bin").exists()
    same_updates(Adapter.load(tmp_path / "out"), expected)


def test_what_does_not_go_is_refused_and_nothing_is_written(cli, adapter_dir, cls_run, tmp_path):
    output = tmp_path / "out"
    for words, said in (
        ((adapter_dir, output, "--rank", 17), "Use rank 16 or less"),
        ((adapter_dir, output, "--rank", 0), "expected a whole number above 0"),
        ((adapter_dir, output, "--to", "onnx"), "'peft', 'portable', 'gguf', 'loralib'"),
        ((adapter_dir, output, "--lora-alpha", 2), "apply to a loralib state dict only"),
        ((adapter_dir, output, "--to", "loralib"), "Unknown kind of state dict"),
        ((adapter_dir / "adapter_model.safetensors", output), f"Name {adapter_dir}."),
        ((cls_run, output, "--to", "portable"), "weights trained in full"),
        ((tmp_path.parent, output), "No adapter in"),
        ((adapter_dir, adapter_dir), "it holds files already"),
    ):
        result = cli("convert", *words)
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert not output.exists()


def test_the_state_dict_written_is_that_of_the_model(cli, adapted, adapter_dir, tmp_path):
    cli("convert", adapter_dir, tmp_path / "a.safetensors", "--to", "loralib")
    written, expected = load_file(tmp_path / "a.safetensors"), lora_state_dict(adapted)
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in written.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float16"], "--dtype applies to --to gguf only; got --to peft"),
        (["--to", "loralib", "--dtype", "float32"], "got --to loralib"),
        (["--to", "loralib", "--base-model", "a/b"], "does not record its base"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(cli, adapter_dir, tmp_path, words, message):
    result = cli("convert", adapter_dir, tmp_path / "out.safetensors", *words)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_state_dict_has_no_configuration_to_edit(cli, adapter_dir, tmp_path):
    file = tmp_path / "one.safetensors"
    assert cli("convert", adapter_dir, file, "--to", "loralib").exit_code == 0
    words = ["--lora-alpha", 4, "--allow-edited-config"]
    result = cli("convert", file, tmp_path / "out", *words)
    assert result.exit_code == 2 and "a state dict without a configuration" in result.stderr


def test_a_state_dict_has_one_alpha_and_it_is_told(cli, tmp_path):
    adapter = layered_adapter(lora_alpha=3, alpha_pattern={"v_proj": 5}, use_rslora=True)
    adapter.save(tmp_path / "adapter")
    file = tmp_path / "one.safetensors"
    result = cli("convert", tmp_path / "adapter", file, "--to", "loralib")
    assert result.exit_code == 0 and "lora_alpha of the layers 3" in " ".join(result.stdout.split())
    assert cli("convert", file, tmp_path / "back", "--lora-alpha", 3).exit_code == 0
    same_updates(Adapter.load(tmp_path / "back"), adapter)
