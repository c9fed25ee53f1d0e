"""Adapters that a model carries: saved, loaded, and read and filled as tensors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import adapter_state_dict, load_adapter_state_dict
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterNameError,
    AdapterStateError,
)
from lorakit.injection import active_adapters, adapter_config, adapter_names
from tiny_models import (
    TinyNet,
    assert_untouched,
    distilbert,
    llama,
    logits,
    randomize_,
    roberta,
    snapshot,
    train_steps,
)
from tiny_models.adapted import CASES, with_adapter


@pytest.mark.parametrize("case", CASES)
def test_save_and_load_keep_every_bit(case, tmp_path):
    build, options = CASES[case]
    model = with_adapter(build, **options)
    before, expected = adapter_state_dict(model), logits(model)
    written = save_adapter(model, tmp_path / "adapter")
    assert sorted(written) == sorted((tmp_path / "adapter").iterdir())
    other = build()
    plain = snapshot(other)
    injection = load_adapter(other, tmp_path / "adapter")
    assert injection.name == "default" and adapter_names(other) == ("default",)
    after = adapter_state_dict(other)
    assert list(after) == list(before)
    assert all(torch.equal(after[k], t) and after[k].dtype == t.dtype for k, t in before.items())
    assert torch.equal(logits(other), expected)
    assert not any(p.requires_grad for p in other.parameters())
    assert adapter_config(other) == adapter_config(model)
    save_adapter(other, tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        first, second = (tmp_path / d / name for d in ("adapter", "again"))
        assert first.read_bytes() == second.read_bytes()
    unload(other)
    assert_untouched(other, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor_dtype", [None, "base"])
def test_half_precision_bases(dtype, factor_dtype, tmp_path):
    model = roberta().to(dtype)
    config = LoraConfig(r=2, task_type="SEQ_CLS", bias="all")
    add_adapter(model, config, dtype=dtype if factor_dtype else None)
    randomize_(model)
    save_adapter(model, tmp_path)
    other = roberta().to(dtype)
    add_adapter(other, Adapter.load(tmp_path), dtype=dtype if factor_dtype else None)
    assert torch.equal(logits(other), logits(model))
    for key, tensor in adapter_state_dict(model).items():
        assert adapter_state_dict(other)[key].dtype == tensor.dtype


def test_a_loaded_adapter_can_be_trained(tmp_path):
    model = with_adapter(distilbert, bias="all")
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    expected = train_steps(model.eval())
    other = distilbert()
    load_adapter(other, tmp_path, trainable=True)
    assert train_steps(other.eval()) == expected
    assert torch.equal(logits(other), logits(model))


class TestNames:
    def test_the_second_adapter_takes_the_directory_s_name(self, tmp_path):
        save_adapter(with_adapter(llama), tmp_path / "topic")
        model = llama()
        assert load_adapter(model, tmp_path / "topic").name == "default"
        assert load_adapter(model, f"{tmp_path}/topic/").name == "topic"
        assert active_adapters(model) == ("topic",)
        assert load_adapter(model, tmp_path / "topic", "third").name == "third"

    def test_a_taken_name(self, tmp_path):
        model = with_adapter(llama)
        save_adapter(model, tmp_path / "topic")
        with pytest.raises(AdapterNameError, match="already there"):
            load_adapter(model, tmp_path / "topic", "default")

    def test_saving_an_unknown_name_writes_nothing(self, tmp_path):
        with pytest.raises(AdapterNameError, match="No adapter is named 'topic'"):
            save_adapter(with_adapter(llama), tmp_path / "a", "topic")
        assert list(tmp_path.iterdir()) == []

    def test_each_of_two_adapters_is_saved_alone(self, tmp_path):
        model = with_adapter(distilbert, "a", bias="all")
        add_adapter(model, LoraConfig(r=3, task_type="SEQ_CLS", target_modules=["q_lin"]), "b")
        randomize_(model, seed=8)
        for name in "ab":
            set_adapter(model, name)
            expected = logits(model)
            set_adapter(model, None)
            save_adapter(model, tmp_path / name, name)
            other = distilbert()
            load_adapter(other, tmp_path / name)
            assert torch.equal(logits(other), expected)


def test_the_file_names_its_base(tmp_path):
    folder = tmp_path / "base"
    llama().save_pretrained(folder)
    model = type(llama()).from_pretrained(folder)
    add_adapter(model, LoraConfig(r=2))
    save_adapter(model, tmp_path / "adapter")
    values = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    assert values["base_model_name_or_path"] == str(folder)
    assert Adapter.load(tmp_path / "adapter").base_model == str(folder)


class TestStateDict:
    def test_load_copies_in_place(self):
        model, other = with_adapter(distilbert, bias="all"), with_adapter(distilbert, bias="all")
        randomize_(other, seed=9)
        places = {n: p for n, p in other.named_parameters() if p.requires_grad}
        load_adapter_state_dict(other, adapter_state_dict(model))
        assert torch.equal(logits(other), logits(model))
        assert all(other.get_parameter(n) is p for n, p in places.items())

    @pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
    def test_it_is_strict_and_copies_nothing_then(self, damage):
        model = with_adapter(llama, target_modules=["q_proj"])
        tensors = {k: t + 1 for k, t in adapter_state_dict(model).items()}
        key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
        expected = {
            "missing": f"missing key {key!r}",
            "unexpected": "unexpected key 'x'",
            "shape": f"{key} has shape (1, 2), expected (16, 2)",
        }[damage]
        if damage == "missing":
            del tensors[key]
        elif damage == "unexpected":
            tensors["x"] = torch.zeros(1)
        else:
            tensors[key] = torch.zeros(1, 2)
        before = snapshot(model)
        with pytest.raises(AdapterMismatchError) as caught:
            load_adapter_state_dict(model, tensors)
        assert str(caught.value) == (
            f"The tensors do not fit adapter 'default': {expected}. Load them into the base and "
            "configuration they were saved from."
        )
        assert_untouched(model, before)


def refused(model, path):
    before = snapshot(model)
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(model, path)
    assert_untouched(model, before)
    return str(caught.value)


def test_the_other_half_of_a_factor_has_another_rank(tmp_path):
    save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors["base_model.model.layers.0.up.lora_B.weight"] = torch.zeros(16, 3)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    assert refused(TinyNet(), tmp_path) == (
        f"Rank in {tmp_path} at layers.0.up: lora_A is (2, 8) and lora_B (16, 3), but the "
        "configuration says r=2. The two files do not belong together."
    )


def test_the_configuration_says_another_rank(tmp_path):
    save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values | {"r": 4}))
    text = refused(TinyNet(), tmp_path)
    assert "adapter_config.json has r=4, and adapter_model.safetensors was saved with r=" in text
    with pytest.raises(AdapterFileError, match="but the configuration says r=4"):
        load_adapter(TinyNet(), tmp_path, allow_edited_config=True)


def test_saving_while_merged_is_refused(tmp_path):
    model = TinyNet()
    add_adapter(model, LoraConfig(r=2))
    randomize_(model)
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match=r"Cannot save an adapter while .* are merged"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    unmerge_adapters(model)
    save_adapter(model, tmp_path / "adapter")
