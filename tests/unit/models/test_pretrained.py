import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lorakit.config import QuantizationConfig
from lorakit.errors import ConfigError, MissingFileError
from lorakit.models.pretrained import (
    fresh_modules,
    fresh_outside_head,
    label_options,
    load_model,
    load_tokenizer,
    model_limit,
    resolve_max_length,
)


def causal(name, **options):
    return load_model(AutoModelForCausalLM, name, seed=1, has_head=False, **options)


def classifier(name, labels=("a", "b"), seed=1, **options):
    return load_model(
        AutoModelForSequenceClassification,
        name,
        seed=seed,
        has_head=True,
        **label_options(labels),
        **options,
    )


def said(kind, function, *arguments, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_dtype_is_the_checkpoints_or_the_one_asked_for(tiny_llama_dir, tmp_path):
    causal(tiny_llama_dir, dtype="bfloat16").save_pretrained(tmp_path)

    assert causal(tiny_llama_dir, dtype="auto").dtype == torch.float32
    assert causal(str(tmp_path), dtype="auto").dtype == torch.bfloat16
    assert causal(str(tmp_path), dtype="float32").dtype == torch.float32


def test_a_head_for_other_labels_is_initialized_again(tiny_distilbert_dir, tmp_path):
    classifier(tiny_distilbert_dir).save_pretrained(tmp_path)

    same, other = classifier(str(tmp_path)), classifier(str(tmp_path), ("x", "y", "z"))

    assert fresh_modules(same) == ()
    assert fresh_modules(other) == ("classifier",)
    assert other.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_modules_outside_the_head(tiny_bert_dir, tiny_distilbert_dir):
    bert = classifier(tiny_bert_dir)

    assert set(fresh_modules(bert)) == {"bert.pooler.dense", "classifier"}
    assert fresh_outside_head(bert) == ("bert.pooler.dense",)
    assert fresh_outside_head(classifier(tiny_distilbert_dir)) == ()


def test_loading_is_silent(tiny_distilbert_dir, capfd, caplog):
    classifier(tiny_distilbert_dir)

    assert "LOAD REPORT" not in capfd.readouterr().err
    assert not caplog.records


def test_limits(tiny_llama_dir, tiny_gpt2_dir, tiny_distilbert_dir, tiny_bloom_dir):
    assert model_limit(causal(tiny_llama_dir)) == 128
    assert model_limit(causal(tiny_gpt2_dir)) == 64
    assert model_limit(classifier(tiny_distilbert_dir)) == 64
    assert model_limit(causal(tiny_bloom_dir)) is None  # ALiBi


def test_limit_of_positions_with_a_padding_row():
    config = RobertaConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = RobertaForMaskedLM(config)

    assert model_limit(model) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_default_length_is_what_model_and_tokenizer_can_do(
    tiny_llama_dir, tiny_bloom_dir, tiny_distilbert_dir
):
    bert_tokenizer = load_tokenizer(tiny_distilbert_dir)  # 64 tokens
    tokenizer = load_tokenizer(tiny_llama_dir)  # no limit of its own

    assert resolve_max_length(None, causal(tiny_llama_dir), tokenizer) == 128
    assert resolve_max_length(None, causal(tiny_llama_dir), bert_tokenizer) == 64
    assert resolve_max_length(None, causal(tiny_bloom_dir), tokenizer) == 1024
    assert resolve_max_length(2000, causal(tiny_bloom_dir), tokenizer) == 2000


def test_end_token_pads_where_there_is_no_other(tiny_gpt2_dir, tiny_llama_dir):
    assert load_tokenizer(tiny_gpt2_dir).pad_token == "</s>"
    assert load_tokenizer(tiny_llama_dir).pad_token == "<pad>"


def test_tokenizer_that_cannot_pad(tiny_gpt2_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(f"{tiny_gpt2_dir}/config.json", tmp_path)

    assert said(ConfigError, load_tokenizer, str(tmp_path)) == (
        f"The tokenizer of '{tmp_path}' in model cannot pad: it has no pad_token, and no eos_token "
        "to use instead. Save it with a pad_token and name that directory."
    )


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
