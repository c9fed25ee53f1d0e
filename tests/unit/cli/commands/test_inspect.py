"""What `lorakit inspect` tells of an adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lorakit import Adapter, LoraConfig, add_adapter, save_adapter
from lorakit.analysis.spectrum import update_svds
from lorakit.cli.commands.inspect import measure
from lorakit.cli.main import app
from lorakit.errors import AdapterFileError

runner = CliRunner()


@pytest.fixture
def adapter_dir(tiny_llama_dir, tmp_path):
    """A trained-looking adapter: B is not zero, and one module has its own rank."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}
    )
    add_adapter(model, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(directory, change_tensor):
    file = directory / "adapter_model.safetensors"
    tensors = {key: change_tensor(key, tensor) for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def inspect(*words):
    return runner.invoke(app, ["inspect", *map(str, words)])


def test_the_norm_is_that_of_the_multiplied_update(adapter_dir):
    adapter = Adapter.load(adapter_dir)
    for path in adapter.factors:
        expected = adapter.delta_weight(path).double().norm().item()
        assert measure(adapter, path).norm == pytest.approx(expected, rel=1e-6)


def test_with_magnitudes_it_says_that_their_lengths_are_left_out(tiny_llama_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    said = []
    for use_dora in (False, True):
        name = str(use_dora)
        add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=use_dora), name)
        save_adapter(model, tmp_path / name, name)
        result = inspect(tmp_path / str(use_dora))
        assert result.exit_code == 0, result.stderr
        said.append("Only s·B·A is measured" in result.stdout)
    assert said == [False, True]


def test_one_row_for_each_kind_of_module(adapter_dir, tiny_llama_dir):
    result = inspect(adapter_dir)
    assert result.exit_code == 0, result.stderr
    size = sum(file.stat().st_size for file in adapter_dir.iterdir())
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"base model {tiny_llama_dir}" in lines
    assert "parameters 704" in lines  # 2 layers of 4 (32 + 32) + 2 (32 + 16)
    assert f"size on disk {size / 1000:.1f} kB" in lines
    assert "settings r: 4" in lines
    assert "rank_pattern: {'v_proj': 2}" in lines
    assert any(line.startswith("q_proj 2 32 32 4 2 ") for line in lines)
    assert any(line.startswith("v_proj 2 32 16 2 4 ") for line in lines)
    assert "Warning" not in result.stdout
    assert f"lorakit merge {adapter_dir} {adapter_dir}-merged" in result.stdout


def test_one_row_for_every_module_on_request(adapter_dir):
    result = inspect(adapter_dir, "--modules")
    assert "model.layers.1.self_attn.v_proj" in result.stdout
    assert result.stdout.count("_proj ") == 4


def test_effective_ranks_and_the_largest_updates(adapter_dir):
    adapter = Adapter.load(adapter_dir)
    path = "model.layers.1.self_attn.q_proj"
    deltas = {p: adapter.delta_weight(p).double() for p in adapter.factors}
    shares = torch.linalg.svdvals(deltas[path])
    shares = shares[:4] / shares[:4].sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    assert measure(adapter, path).effective_rank == pytest.approx(expected, rel=1e-6)
    lines = [" ".join(line.split()) for line in inspect(adapter_dir).stdout.splitlines()]
    start = lines.index("The 4 largest updates")
    rows = [line.split() for line in lines[start:] if line.startswith("model.")]
    largest = sorted(deltas, key=lambda p: -deltas[p].norm())
    assert [row[0] for row in rows] == largest
    whole = sum(delta.norm() ** 2 for delta in deltas.values())
    share = 100 * deltas[largest[0]].norm() ** 2 / whole
    assert rows[0][2] == f"{share:.1f}%"
    row = next(row for row in rows if row[0] == path)
    assert row[3] == f"{expected:.1f}"


def test_the_layers_are_plotted_on_request(adapter_dir, tmp_path):
    (tmp_path / "file").touch()
    assert inspect(adapter_dir, "--plot", tmp_path / "file" / "layers.png").exit_code == 2
    result = inspect(adapter_dir, "--plot", tmp_path / "new" / "layers.png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new/layers.png").read_bytes().startswith(b"\x89PNG")
    assert f"{tmp_path}/new/layers.png (" in " ".join(result.stdout.split())


def test_an_adapter_that_was_never_trained_is_called_so(adapter_dir):
    change(adapter_dir, lambda key, tensor: tensor * (0 if "lora_B" in key else 1))
    result = inspect(adapter_dir)
    assert result.exit_code == 0
    assert (
        "Warning: lora_B is zero in every module: this adapter was never trained and changes "
        "nothing.\n"
    ) in result.stdout


def test_modules_that_never_learnt_are_named(adapter_dir):
    never = "layers.1.self_attn.v_proj.lora_B"
    change(adapter_dir, lambda key, tensor: tensor * (0 if never in key else 1))
    assert (
        "Warning: the update is zero in 1 of 4 modules, which never learned: "
        "model.layers.1.self_attn.v_proj."
    ) in inspect(adapter_dir).stdout


def test_numbers_that_are_none_are_named(adapter_dir, tmp_path):
    broken = "layers.0.self_attn.q_proj.lora_A"
    change(adapter_dir, lambda key, tensor: tensor * (float("nan") if broken in key else 1))
    result = inspect(adapter_dir, "--plot", tmp_path / "layers.png")
    assert result.exit_code == 2
    assert f"{broken}.weight' has NaN; expected finite numbers" in result.stderr
    assert "a lower learning rate" in result.stderr
    assert not (tmp_path / "layers.png").exists()


def test_a_truncated_file_is_an_error(adapter_dir):
    file = adapter_dir / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    result = inspect(adapter_dir)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: Cannot read {file}: ")
    assert "it has 100 bytes, and its header would take" in result.stderr


def test_an_unsupported_feature_is_refused_by_name(adapter_dir):
    file = adapter_dir / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_qalora": True}))
    result = inspect(adapter_dir)
    assert result.exit_code == 2
    assert "use_qalora" in result.stderr


def test_a_misspelt_directory_is_answered_with_the_nearest(adapter_dir):
    result = inspect(adapter_dir.parent / "adaptre")
    assert result.exit_code == 2
    assert "There is no adapter directory" in result.stderr
    assert "Did you mean 'adapter'?" in result.stderr


# ---- --quantization ----


def test_trained_tokens_are_shown(tiny_gpt2_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
    config = LoraConfig(
        r=2, target_modules=["c_attn"], trainable_token_indices=[9, 5, 3, 10, 11, 12, 13, 14, 15]
    )
    add_adapter(model, config)
    save_adapter(model, tmp_path / "adapter")
    result = inspect(tmp_path / "adapter")
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "transformer.wte 9 32 288" in lines
    assert any(line.startswith("parameters") and "288 of tokens" in line for line in lines)
    setting = "trainable_token_indices: [9, 5, 3, 10, 11, 12, 13, 14, … 9 in total]"
    assert any(setting in line for line in lines)


def test_factors_for_a_base_that_peft_has_changed_are_reported(adapter_dir):
    change(adapter_dir, lambda key, tensor: tensor)  # as PEFT saves it, without a record
    file = adapter_dir / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "olora"}))
    result = inspect(adapter_dir)
    assert result.exit_code == 0
    assert "Warning: init_lora_weights=olora: part of the base is in the factors" in result.output
    with pytest.raises(AdapterFileError, match="Cannot decompose the adapter: got init_lora_w"):
        update_svds(Adapter.load(adapter_dir))
