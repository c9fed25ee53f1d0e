"""Base models to choose from, and what each is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.config import TaskType
from lorakit.errors import ConfigError, MissingFileError
from lorakit.quickstart.model_files import base_model_path
from lorakit.runs.base_models import cached_bases, describe_base, find_bases


def test_bases_below_a_folder_are_found_and_adapters_are_not(tmp_path):
    for name in ("small", "deep/inside/other"):
        shutil.copytree(base_model_path(), tmp_path / name)
    adapter = tmp_path / "runs" / "a" / "adapter"
    adapter.mkdir(parents=True)
    for name in ("config.json", "adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).touch()
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "no_weights" / "config.json").touch()
    assert find_bases(tmp_path) == ["deep/inside/other", "small"]


def test_a_base_is_described_from_its_configuration_and_headers():
    path = base_model_path()
    base = describe_base(str(path), Path("/"))
    assert base is not None
    config = json.loads((path / "config.json").read_text())
    assert (base.kind, base.architecture) == ("llama", "LlamaForCausalLM")
    assert (base.layers, base.hidden_size) == (config["num_hidden_layers"], config["hidden_size"])
    assert base.size_bytes == (path / "model.safetensors").stat().st_size
    assert base.parameters is not None and abs(2 * base.parameters - base.size_bytes) < 20_000
    assert base.dtypes == ("BF16",) and base.has_chat_template
    modules = {module.name: module for module in base.modules}
    assert modules["q_proj"].count == base.layers and modules["q_proj"].shape[1] == base.hidden_size
    assert base.tasks[0] == TaskType.CAUSAL_LM


def test_describing_a_base_imports_no_torch():
    code = (
        "import sys; from pathlib import Path; from lorakit.runs.base_models import describe_base;"
        f"describe_base({str(base_model_path())!r}, Path('/'));"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("T5ForConditionalGeneration", TaskType.SEQ_2_SEQ_LM),
        ("BertForMaskedLM", TaskType.SEQ_CLS),
        ("GPT2LMHeadModel", TaskType.CAUSAL_LM),
    ],
)
def test_the_architecture_says_what_a_base_is_for(tmp_path, architecture, task):
    config = {"model_type": "x", "architectures": [architecture], "n_layer": 2, "n_embd": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"123")
    base = describe_base(".", tmp_path)
    assert base is not None and base.tasks[0] == task
    assert (base.layers, base.hidden_size, base.size_bytes, base.parameters) == (2, 8, 3, None)
    assert not base.has_chat_template


def test_a_damaged_header_is_left_to_training(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 30)
    base = describe_base(".", tmp_path)
    assert base is not None and base.parameters is None and base.modules == ()


def test_what_is_no_base_is_refused_as_training_refuses_it(tmp_path):
    with pytest.raises(MissingFileError, match="which does not exist"):
        describe_base("./nowhere", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json"):
        describe_base(".", tmp_path)


def test_a_hub_id_that_is_not_here_has_no_description(tmp_path, monkeypatch):
    assert describe_base("unknown-owner/unknown-model", tmp_path) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("models--owner--name/snapshots/abc", "models--gpt2/snapshots/d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    assert cached_bases() == ["gpt2", "owner/name"]
