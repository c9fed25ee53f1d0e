"""What is said of a base or a tokenizer that cannot be loaded."""

import json
import shutil
from functools import partial

import pytest
from transformers import AutoModelForCausalLM

from lorakit.config import QuantizationConfig
from lorakit.errors import ConfigError, MissingFileError
from lorakit.models.pretrained import (
    load_model,
    load_tokenizer,
)

causal = partial(load_model, AutoModelForCausalLM, seed=1, has_head=False)


def said(kind, function, *arguments, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_missing_directory_names_its_neighbours(tiny_llama_dir, tmp_path):
    (tmp_path / "my-llama").mkdir()

    assert said(MissingFileError, causal, str(tmp_path / "my-lama")) == (
        f"No model in model: got '{tmp_path}/my-lama', which does not exist. Near it: my-llama. "
        "Check the path; it is relative to the current directory."
    )
    assert said(MissingFileError, causal, "./no/such") == (
        "No model in model: got './no/such', which does not exist. There is no folder 'no' either. "
        "Check the path; it is relative to the current directory."
    )


def test_directory_that_is_no_model(tmp_path):
    assert said(MissingFileError, causal, str(tmp_path)) == (
        f"No model in model: got '{tmp_path}', a directory without config.json. Name a directory "
        "that save_pretrained wrote, or a hub id."
    )
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert said(ConfigError, causal, str(tmp_path)) == (
        f"No base model in model: got '{tmp_path}', which is an adapter. Name the base it was made "
        "for (base_model_name_or_path in its adapter_config.json), or merge the two first: lorakit "
        f"merge {tmp_path}."
    )
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert said(MissingFileError, causal, str(file)) == (
        f"No model in model: got the file '{file}', expected a directory with config.json and "
        f"weights, or a hub id. Name its folder, '{tmp_path}'."
    )


def test_directory_without_weights_or_tokenizer(tiny_llama_dir, tmp_path):
    shutil.copy(f"{tiny_llama_dir}/config.json", tmp_path)

    weights = said(MissingFileError, causal, str(tmp_path))
    assert weights.startswith(f"Could not load the model in model from the directory '{tmp_path}' ")
    assert weights.endswith(
        "Name a directory that holds the files that save_pretrained of model and tokenizer wrote."
    )
    tokenizer = said(MissingFileError, load_tokenizer, str(tmp_path))
    assert tokenizer.startswith("Could not load the tokenizer in model from the directory")


def test_a_tokenizer_without_files_is_not_an_empty_one(
    tiny_bert_dir, tiny_gpt2_dir, tiny_t5_dir, tmp_path
):
    for name in (tiny_bert_dir, tiny_gpt2_dir, tiny_t5_dir):
        assert load_tokenizer(name).get_vocab()
        shutil.copy(f"{name}/config.json", tmp_path)
        assert said(MissingFileError, load_tokenizer, str(tmp_path)).startswith(
            f"No vocabulary of the tokenizer in model: got '{tmp_path}' without its files, "
            "expected those that save_pretrained of the tokenizer wrote"
        )


def test_truncated_weights(tiny_llama_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    message = said(ConfigError, causal, str(tmp_path / "cut"))

    assert message.startswith(
        f"Could not load the model in model: got '{tmp_path}/cut', whose files are damaged or do "
        "not belong together ("
    )
    assert message.endswith("Download or save the model again.")


@pytest.mark.parametrize("contents", [b"", b"no pickle"])
def test_damaged_pickles(tiny_llama_dir, tmp_path, contents):
    shutil.copy(f"{tiny_llama_dir}/config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(contents)

    message = said(ConfigError, causal, str(tmp_path))

    assert "whose files are damaged or do not belong together (" in message
    assert message.endswith("Download or save the model again.")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("quantization", [None, QuantizationConfig(bits=4)])
@pytest.mark.parametrize(
    ("files", "said_of_them"),
    [
        (["model.safetensors"], "model.safetensors is a git-lfs pointer"),
        (["pytorch_model.bin"], "pytorch_model.bin is a git-lfs pointer"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "model-00001-of-00002.safetensors and 1 more are git-lfs pointers",
        ),
    ],
)
def test_weights_that_git_lfs_keeps_elsewhere(
    tiny_llama_dir, tmp_path, files, said_of_them, quantization
):
    shutil.copy(f"{tiny_llama_dir}/config.json", tmp_path)
    for file in files:
        (tmp_path / file).write_bytes(POINTER)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": {"lm_head.weight": files[0], "x": files[1]}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert said(MissingFileError, causal, str(tmp_path), quantization=quantization) == (
        f"Could not load the model in model: got '{tmp_path}', whose {said_of_them}, expected the "
        "contents. Run `git lfs pull` in that folder."
    )


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_git_lfs_keeps_elsewhere(tiny_llama_dir, tmp_path, file):
    shutil.copytree(tiny_llama_dir, tmp_path / "base")
    (tmp_path / "base" / file).write_bytes(POINTER)

    assert said(MissingFileError, load_tokenizer, str(tmp_path / "base")) == (
        f"Could not load the tokenizer in model: got '{tmp_path}/base', whose {file} is a git-lfs "
        "pointer, expected the contents. Run `git lfs pull` in that folder."
    )


def test_a_configuration_that_git_lfs_keeps_elsewhere(tiny_llama_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_bytes(POINTER)

    assert "whose config.json is a git-lfs pointer" in said(
        MissingFileError, causal, str(tmp_path / "base")
    )


def test_hub_that_cannot_be_reached():
    message = said(MissingFileError, causal, "gpt2")

    assert message.startswith(
        "Could not load the model in model: got 'gpt2', which is not a directory, and asking the "
        "Hugging Face hub for it failed ("
    )
    assert message.endswith("Check the name and the network, or name a local directory.")
    assert said(MissingFileError, load_tokenizer, "some/thing", key="base").startswith(
        "Could not load the tokenizer in base: got 'some/thing', which is not a directory"
    )


def test_a_hub_id_like_the_path_of_a_directory(tmp_path, monkeypatch):
    (tmp_path / "models" / "distilbert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert said(MissingFileError, causal, "models/distlbert").endswith(
        "Did you mean 'distilbert'? Check the name and the network, or name a local directory."
    )


def test_model_of_another_kind(tiny_t5_dir, tiny_distilbert_dir):
    assert said(ConfigError, causal, tiny_t5_dir) == (
        f"The model in model cannot do this task: got '{tiny_t5_dir}' of type 't5', expected one "
        "that AutoModelForCausalLM knows. Choose another model, or another task."
    )


def test_checkpoint_without_the_weights_of_the_body(tiny_llama_dir, tiny_gpt2_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "mixed")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "mixed" / "config.json").write_text(json.dumps(config))

    message = said(ConfigError, causal, str(tmp_path / "mixed"))

    assert message == (
        f"The checkpoint '{tmp_path}/mixed' in model lacks 9 weights that LlamaForCausalLM needs "
        "(model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "
        "model.layers.2.mlp.gate_proj.weight, …); they would be random. Choose a model that was "
        "trained for this task type, or another task."
    )
