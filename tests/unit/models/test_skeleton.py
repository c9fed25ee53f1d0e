"""Models built from a configuration alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.errors import ConfigError, MissingFileError
from lorakit.models.pretrained import label_options
from lorakit.models.skeleton import load_config, load_skeleton
from tiny_models import qwen3_moe


def test_a_skeleton_is_the_checkpoint_s_model_without_weights(tiny_llama_dir):
    made = load_skeleton(AutoModelForCausalLM, tiny_llama_dir, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert {p.device.type for p in made.parameters()} == {"meta"}
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    sizes = [{name: p.shape for name, p in one.named_parameters()} for one in (made, model)]
    assert sizes[0] == sizes[1] and type(made) is type(model)


def test_options_change_the_configuration_and_none_is_no_option(config_dir):
    labels = label_options(("bad", "good", "so-so"))
    made = load_skeleton(
        *(AutoModelForSequenceClassification, config_dir()),
        device=torch.device("cpu"),
        dtype=None,
        revision=None,
        **labels,
    )
    assert made.score.weight.shape == (3, 32) and made.score.weight.device.type == "cpu"
    assert made.config.id2label[1] == "good"


def test_a_model_of_another_task_is_refused(tiny_t5_dir):
    with pytest.raises(ConfigError, match=r"in base cannot do this task.*AutoModelForCausalLM"):
        load_skeleton(AutoModelForCausalLM, tiny_t5_dir, key="base")


def test_a_config_without_sizes_is_refused(config_dir):
    model = config_dir(without=["hidden_size", "vocab_size"])
    with pytest.raises(ConfigError, match=r"config.json has no vocab_size, hidden_size"):
        load_config(model)


def test_sizes_may_have_the_names_of_their_type(tiny_distilbert_dir):
    assert load_config(tiny_distilbert_dir).hidden_size == 32  # DistilBERT's `dim`


def test_a_config_that_says_not_what_it_is_of(config_dir):
    with pytest.raises(MissingFileError, match="model_type"):
        load_config(config_dir(without=["model_type"]))


def test_remote_code_needs_permission(config_dir):
    model = config_dir(model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(ConfigError, match="set trust_remote_code=true in the recipe"):
        load_config(model)


@pytest.mark.parametrize(("width", "implementation"), [(20, "eager"), (24, "grouped_mm")])
def test_experts_of_odd_widths_are_computed_as_in_the_loaded_base(width, implementation, tmp_path):
    qwen3_moe(moe_intermediate_size=width).save_pretrained(tmp_path)
    made = load_skeleton(AutoModelForCausalLM, str(tmp_path), dtype=torch.bfloat16)
    assert made.config._experts_implementation == implementation
