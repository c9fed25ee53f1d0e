"""Types of models whose module names PEFT reads in its own way: files both ways, and its tables."""

import json
import warnings
from types import SimpleNamespace

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import (
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
    convert_peft_adapter_state_dict_for_transformers,
)
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING

from lorakit import LoraConfig, add_adapter, load_adapter, save_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import LorakitWarning
from lorakit.injection.selection.peft_names import FORBIDDEN_NAMES, NAMES_OF_EXPERTS, unread_by_peft
from tiny_models import randomize_
from tiny_models.by_type import class_of, logits_of, small_model
from tolerances import largest_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*target_parameters.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern keys did not match any targeted"),
    pytest.mark.filterwarnings("ignore:.*were set but no module was matched:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*were set but no parameter was matched:RuntimeWarning"),
]
TOLERANCE = 1e-5

PARTS_ONLY = {
    "Dots3NoteTextModel",
    "UnlimitedOcrTextModel",
    "qwen3_omni_moe",
    "qwen3_omni_moe_text",
}
"""Entries of the table that are parts of other models, or models of speech."""
MIXTURES = [*sorted(NAMES_OF_EXPERTS.keys() - PARTS_ONLY), "qwen2_moe"]

NOT_PEFT = {
    # Its all-linear takes layers of audio for targets, by the names that it gives the router.
    "qwen3_omni_moe_thinker": "not supported"
}
UNKNOWN_EXPERTS = {"longcat_flash": "no module 'model.layers.0.mlp.experts.gate_up_proj'"}
"""Experts whose forward lorakit does not know, so that PEFT's files are refused."""

FORBIDDEN = sorted(FORBIDDEN_NAMES)


def ours_of(model_type, **options):
    model = small_model(model_type)
    options = {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"} | options
    add_adapter(model, LoraConfig(**options))
    return randomize_(model, seed=4, scale=0.2)


def theirs_from(directory, model_type):
    return PeftModel.from_pretrained(small_model(model_type), directory).eval()


class TestTables:
    def test_names_of_experts_are_those_that_peft_takes(self):
        expected = {
            kind: frozenset(_MOE_TARGET_MODULE_MAPPING[pattern])
            for kind, pattern in _MODEL_TO_CONVERSION_PATTERN.items()
            if pattern in _MOE_TARGET_MODULE_MAPPING
        }
        assert expected == NAMES_OF_EXPERTS

    def test_forbidden_names_are_those_that_peft_refuses(self):
        names = {
            "out_proj",
            "conv1d",
            "in_proj",
            "x_proj",
            "dt_proj",
            "q_proj",
            "o_proj",
            "lm_head",
        }
        found = {}
        for kind in CONFIG_MAPPING:
            model = SimpleNamespace(config=SimpleNamespace(model_type=kind))
            for name in names:
                try:
                    _check_lora_target_modules_mamba(peft.LoraConfig(), model, name)
                except ValueError:
                    found.setdefault(kind, set()).add(name)
        assert found == FORBIDDEN_NAMES

    def test_the_parts_have_no_language_model(self):
        assert all(kind not in CONFIG_MAPPING or class_of(kind) is None for kind in PARTS_ONLY)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_what_is_saved_gives_peft_the_same_outputs(model_type, tmp_path):
    ours = ours_of(model_type)
    save_adapter(ours, tmp_path)
    expected = logits_of(ours)
    assert largest_error(logits_of(theirs_from(tmp_path, model_type)), expected) < TOLERANCE
    assert largest_error(logits_of(small_model(model_type)), expected) > 100 * TOLERANCE
    again = small_model(model_type)
    load_adapter(again, tmp_path)
    assert torch.equal(logits_of(again), expected)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_what_peft_saved_gives_its_outputs(model_type, tmp_path):
    config = peft.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear")
    if model_type in NOT_PEFT:
        with pytest.raises(ValueError, match=NOT_PEFT[model_type]):
            get_peft_model(small_model(model_type), config)
        return
    theirs = randomize_(get_peft_model(small_model(model_type), config).eval(), seed=3, scale=0.2)
    theirs.save_pretrained(tmp_path)
    ours = small_model(model_type)
    if model_type in UNKNOWN_EXPERTS:
        with pytest.raises(ValueError, match=UNKNOWN_EXPERTS[model_type]):
            load_adapter(ours, tmp_path)
        return
    load_adapter(ours, tmp_path)
    assert largest_error(logits_of(ours), logits_of(theirs)) < TOLERANCE
    save_adapter(ours, tmp_path / "again")
    again = theirs_from(tmp_path / "again", model_type)
    assert largest_error(logits_of(again), logits_of(theirs)) < TOLERANCE


class TestSettings:
    """What else a file says of layers that are named by their weight."""

    @pytest.mark.parametrize(
        "options",
        [
            {"r": 2, "rank_pattern": {"up_proj": 1, "layers.1.mlp.shared_experts.down_proj": 3}},
            {"alpha_pattern": {"gate_proj": 5, "q_b_proj": 3}, "use_rslora": True},
            {"lora_dropout": 0.5},
            {"target_modules": ["gate_proj", "q_b_proj"]},
            {"target_modules": r".*shared_experts\.(gate|up)_proj"},
            {"target_modules": ["down_proj"], "target_parameters": ["experts.down_proj"]},
            {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
            {"target_modules": ["q_b_proj"], "target_parameters": ["down_proj", "gate.weight"]},
        ],
        ids=str,
    )
    def test_peft_reads_them(self, options, tmp_path):
        ours = ours_of("deepseek_v3", **options)
        save_adapter(ours, tmp_path)
        expected = logits_of(ours.eval())
        assert largest_error(logits_of(theirs_from(tmp_path, "deepseek_v3")), expected) < TOLERANCE
        again = small_model("deepseek_v3")
        load_adapter(again, tmp_path)
        assert torch.equal(logits_of(again), expected)
        save_adapter(again, tmp_path / "again")
        first, second = (load_file(path / WEIGHTS_FILE) for path in (tmp_path, tmp_path / "again"))
        assert first.keys() == second.keys()
        configs = [
            json.loads((path / CONFIG_FILE).read_text()) for path in (tmp_path, tmp_path / "again")
        ]
        assert configs[0]["target_parameters"] == configs[1]["target_parameters"]
        assert configs[0]["target_modules"] == configs[1]["target_modules"]

    def test_magnitudes_are_refused_with_the_reason(self, tmp_path):
        ours = ours_of("deepseek_v3", use_dora=True)
        with pytest.warns(
            LorakitWarning, match="it takes down_proj, gate_proj, up_proj for the na"
        ):
            save_adapter(ours, tmp_path)
        again = small_model("deepseek_v3")
        load_adapter(again, tmp_path)
        assert torch.equal(logits_of(again), logits_of(ours))


@pytest.mark.parametrize("model_type", FORBIDDEN)
class TestForbidden:
    def test_saving_says_what_peft_will_not_read(self, model_type, tmp_path):
        ours = ours_of(model_type)
        refused = (
            rf"PEFT does not read .* refuses to adapt out_proj in models of type '{model_type}'"
        )
        with pytest.warns(LorakitWarning, match=refused):
            save_adapter(ours, tmp_path)
        with pytest.raises(ValueError, match="'out_proj' is incompatible"):
            theirs_from(tmp_path, model_type)

    def test_without_those_modules_peft_reads_the_same(self, model_type, tmp_path):
        ours = ours_of(model_type, exclude_modules=["out_proj"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_adapter(ours, tmp_path)
        expected = logits_of(ours)
        assert largest_error(logits_of(theirs_from(tmp_path, model_type)), expected) < TOLERANCE


NAMED = [
    "mixtral",
    "llava",
    "gemma3",
    "deepseek_v3",
    "qwen2_audio",
    "mistral3",
    "got_ocr2",
    "aria",
    "laguna",
]


@pytest.mark.parametrize("model_type", NAMED)
def test_keys_that_peft_changes_are_known(model_type):
    model = small_model(model_type)
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    keys = {f"base_model.model.{path}.lora_A.weight": torch.ones(1) for path in paths}
    read = convert_peft_adapter_state_dict_for_transformers(model, peft.LoraConfig(), dict(keys))
    assert (unread_by_peft(model, LoraConfig(), paths) is None) == (read.keys() == keys.keys())
