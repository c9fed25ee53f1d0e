"""What is said of adapters that PEFT reads otherwise or not at all; the files are in interop."""

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import Adapter, LoraConfig, add_adapter, save_adapter
from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from lorakit.errors import LorakitWarning
from tiny_models import bert


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_task_whose_head_is_left_out(tmp_path):
    model = bert("BertForSequenceClassification")
    config = LoraConfig(r=2, task_type="SEQ_CLS", exclude_modules=["classifier"])
    said = "with task_type=SEQ_CLS it looks for classifier in the file"
    assert said in str(add_adapter(model, config))
    with pytest.warns(LorakitWarning, match=said):
        save_adapter(model, tmp_path)
    with pytest.raises(KeyError, match="classifier"):  # as it was said
        PeftModel.from_pretrained(bert("BertForSequenceClassification"), tmp_path)


def test_a_task_with_its_head_is_not_mentioned(tmp_path):
    model = bert("BertForSequenceClassification")
    add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path)


@pytest.fixture
def grouped(tmp_path):
    """Return a directory with magnitudes of a convolution in groups, saved by lorakit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    add_adapter(model, LoraConfig(r=2, target_modules=["0"], use_dora=True))
    with pytest.warns(LorakitWarning, match=r"rows of convolutions in groups \(0\)"):
        save_adapter(model, tmp_path)
    return tmp_path


def test_magnitudes_of_convolutions_in_groups_are_lorakit_s_own(grouped):
    Adapter.load(grouped)  # says nothing


def test_those_of_another_tool_are_said_to_act_otherwise(grouped):
    weights = grouped / WEIGHTS_FILE
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    with pytest.warns(LorakitWarning, match="may give other outputs here than where it was tr"):
        Adapter.load(grouped)
