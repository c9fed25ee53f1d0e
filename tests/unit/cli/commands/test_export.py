"""`lorakit export`: what is written for vLLM and Ray, and what they cannot serve."""

import json
import shutil
import subprocess
from itertools import pairwise

import pytest
import torch
import yaml

from lorakit.adapters import Adapter
from tiny_models import llama
from tiny_models.adapted import save_adapter_of


@pytest.fixture
def adapter(tmp_path):
    """Save an adapter of a Llama with any configuration; return its directory."""

    def save(settings=None, **config):
        place = save_adapter_of(tmp_path / "german", llama(), **{"task_type": "CAUSAL_LM"} | config)
        file = place / "adapter_config.json"
        values = json.loads(file.read_text()) | {"base_model_name_or_path": "owner/base"}
        file.write_text(json.dumps(values))
        if settings is not None:
            (place / "lorakit.json").write_text(json.dumps({"task_type": "CAUSAL_LM", **settings}))
        return place

    return save


def started(script, tmp_path, name):
    """Run a script with a program of this name that writes its arguments; return them."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    program = tools / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["sh", script, "--extra"], check=True, env=environment, cwd="/")
    return (tmp_path / "arguments").read_text().splitlines()


def test_vllm_is_started_with_the_base_the_adapter_and_a_rank_it_has(cli, adapter, tmp_path):
    place = adapter({"dtype": "bfloat16", "stop_token_ids": [7]}, r=12, use_rslora=True)
    output = tmp_path / "out"
    result = cli("export", place, "--for", "vllm", "--output", output)
    assert result.exit_code == 0, result.stderr
    arguments = started(output / "serve.sh", tmp_path, "vllm")
    assert arguments[:2] == ["serve", "owner/base"] and arguments[-1] == "--extra"
    pairs = dict(pairwise(arguments))
    assert pairs["--lora-modules"] == f"german={output}/adapter"
    assert pairs["--max-lora-rank"] == "16" and pairs["--dtype"] == "bfloat16"
    assert "--enable-lora" in arguments and "--chat-template" not in arguments
    request = started(output / "request.sh", tmp_path, "curl")
    body = json.loads(request[-1] if request[-1].startswith("{") else "".join(request[5:]))
    assert body["model"] == "german" and body["stop_token_ids"] == [7]


def test_the_adapter_has_the_same_updates_with_plain_scaling(cli, adapter, tmp_path):
    place = adapter(use_rslora=True, rank_pattern={"q_proj": 1}, alpha_pattern={"v_proj": 5})
    assert cli("export", place, "--for", "vllm").exit_code == 0
    before, after = Adapter.load(place), Adapter.load(f"{place}-vllm/adapter")
    assert after.config.lora_alpha == after.config.r and not after.config.use_rslora
    assert not after.config.rank_pattern and not after.config.alpha_pattern
    for path in before.factors:
        torch.testing.assert_close(after.delta_weight(path), before.delta_weight(path))


def test_a_chat_template_comes_along_wherever_it_is_kept(cli, adapter, tmp_path):
    place = adapter({"format": "messages"})
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    result = cli("export", place, "--for", "vllm")
    assert result.exit_code == 0, result.stderr
    output = tmp_path / "german-vllm"
    assert (output / "adapter" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (
        '--chat-template "$here/adapter/chat_template.jinja"' in (output / "serve.sh").read_text()
    )
    assert "/v1/chat/completions" in (output / "request.sh").read_text()


def test_a_base_in_four_bits_is_quantized_with_a_note(cli, adapter, tmp_path):
    result = cli("export", adapter({"quantization": {"bits": 4}}), "--for", "vllm")
    assert result.exit_code == 0, result.stderr
    assert "The base was in 4 bits (nf4) in training." in result.stdout
    assert "--quantization bitsandbytes" in (tmp_path / "german-vllm" / "serve.sh").read_text()


def test_rays_application_is_one_that_ray_accepts(cli, adapter, tmp_path):
    words = ("export", adapter(), "--for", "ray", "--storage", "s3://bucket/adapters/")
    result = cli(*words, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    written = yaml.safe_load((tmp_path / "out" / "serve.yaml").read_text())
    (application,) = written["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (config,) = application["args"]["llm_configs"]
    assert config["model_loading_config"] == {"model_id": "base", "model_source": "owner/base"}
    assert config["lora_config"]["dynamic_lora_loading_path"] == "s3://bucket/adapters"
    assert config["engine_kwargs"]["max_lora_rank"] == 8
    script = (tmp_path / "out" / "serve.sh").read_text()
    assert 'aws s3 cp --recursive "$here/adapter" s3://bucket/adapters/german' in script
    assert '"model": "base:german"' in (tmp_path / "out" / "request.sh").read_text()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA (use_dora)"),
        ({"modules_to_save": ["lm_head"]}, "layers trained in full (lm_head.weight)"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "adapted embeddings"),
        ({"trainable_token_indices": [1, 2]}, "trained tokens"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(cli, adapter, tmp_path, config, reason):
    result = cli("export", adapter(**config), "--for", "vllm")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: vLLM cannot serve ") and reason in result.stderr
    assert "lorakit serve" in result.stderr and "lorakit merge" in result.stderr
    assert not (tmp_path / "german-vllm").exists()


def test_a_classifier_is_refused_with_its_task_and_head(cli, cls_run):
    result = cli("export", cls_run, "--for", "vllm")
    assert result.exit_code == 2
    assert "the task SEQ_CLS; layers trained in full (" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "ray"], "--for ray needs --storage"),
        (["--for", "ray", "--storage", "/disk"], "--storage cannot be used: got '/disk'"),
        (["--for", "vllm", "--storage", "s3://b"], "--storage applies to --for ray only"),
        (["--for", "vllm", "--name", "a=b"], "cannot be served as 'a=b'"),
    ],
)
def test_options_that_do_not_fit_are_refused(cli, adapter, words, message):
    result = cli("export", adapter(), *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_an_occupied_directory_and_a_missing_run_are_refused(cli, adapter, tmp_path):
    place = adapter()
    shutil.copytree(place, f"{place}-vllm")
    assert "holds files already" in cli("export", place, "--for", "vllm").stderr
    result = cli("export", tmp_path / "none", "--for", "vllm")
    assert result.exit_code == 2 and "No run or adapter directory" in result.stderr


def test_the_adapter_of_the_working_directory_is_exported_beside_it(cli, adapter, monkeypatch):
    place = adapter()
    monkeypatch.chdir(place)
    result = cli("export", ".", "--for", "vllm")
    assert result.exit_code == 0, result.stderr
    assert (place.parent / "german-vllm" / "serve.sh").is_file()
    assert not list(place.glob(".*"))
