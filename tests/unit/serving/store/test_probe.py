"""An adapter must act, and give finite numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import XLNetConfig, XLNetForSequenceClassification

from lorakit import Adapter, LoraConfig, add_adapter, set_adapter
from lorakit.errors import AdapterFileError
from lorakit.layers.executors import per_row
from lorakit.serving.store.probe import Probe, require_update
from tiny_models import bert, distilbert, gpt2, llama, t5
from tiny_models.adapted import CASES, with_adapter
from tiny_models.adapters import layered_adapter
from tiny_models.trained_tokens import BUILDS, with_tokens


def added(build, change=None, **config):
    """Return a model, an adapter that was changed before it was added, and the injection."""
    config = {"r": 2} | config
    adapter = Adapter.from_model(with_adapter(build, **config))
    adapter = adapter if change is None else change(adapter)
    model = build()
    injection = add_adapter(model, adapter, "x", trainable=False)
    set_adapter(model, None)
    return model, adapter, injection


def checked(model, adapter, injection, **options):
    Probe(model, **options).check("mine", "x", adapter, lambda: injection)


def with_factors(adapter, function):
    return replace(adapter, factors={p: function(*pair) for p, pair in adapter.factors.items()})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_adapters_of_every_kind_act(case):
    build, config = case
    checked(*added(build, **config))


def test_classifiers_that_read_the_end_of_a_text_are_probed_with_one():
    checked(*added(lambda: t5("T5ForSequenceClassification"), target_modules=["q", "v"]))


def test_a_model_that_puts_tokens_first_is_refused():
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    build = XLNetForSequenceClassification(XLNetConfig(**sizes)).eval
    with pytest.raises(AdapterFileError, match="Cannot serve adapter 'mine' beside others"):
        checked(*added(build, target_modules=["layer_1"]))


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_trained_tokens_alone_act(build):
    adapter = with_factors(Adapter.from_model(with_tokens(build)), lambda A, B: (A, B * 0))
    fresh = build()
    checked(fresh, adapter, add_adapter(fresh, adapter, "x", trainable=False))


@pytest.mark.parametrize("of_A", [False, True], ids=["lora_B", "lora_A"])
def test_zero_factors_are_named(of_A):
    zeroed = with_factors(layered_adapter(r=3), lambda A, B: (A * 0, B) if of_A else (A, B * 0))
    name = "lora_A" if of_A else "lora_B"
    with pytest.raises(
        AdapterFileError,
        match=rf"'mine'.*{name} is zero in all 4 modules.*model\.layers\.0\.attn\.q_proj, r=3",
    ):
        require_update("mine", zeroed)


def test_one_factor_that_acts_is_enough():
    adapter = layered_adapter()
    first = next(iter(adapter.factors))
    zeroed = with_factors(adapter, lambda A, B: (A, B * 0))
    require_update(
        "mine", replace(zeroed, factors={**zeroed.factors, first: adapter.factors[first]})
    )


def test_an_adapter_without_tensors_is_refused():
    with pytest.raises(AdapterFileError, match="no tensor that changes the base"):
        require_update("mine", replace(layered_adapter(), factors={}))


def test_an_update_below_rounding_is_refused_with_what_it_has():
    parts = added(llama, lambda one: with_factors(one, lambda A, B: (A, B * 1e-12)))
    with pytest.raises(AdapterFileError, match=r"equal the base's.*14 modules.*r=2.*e-1\d"):
        checked(*parts)
    checked(*parts, allow_noop=True)


def untrained(build, **config):
    """Return an adapter as it is before training, heads and magnitudes included."""
    model = build()
    add_adapter(model, LoraConfig(r=2, **config))
    adapter = Adapter.from_model(model)
    fresh = build()
    return fresh, adapter, add_adapter(fresh, adapter, "x", trainable=False)


@pytest.mark.parametrize(
    ("build", "config", "part"),
    [
        (distilbert, {"task_type": "SEQ_CLS"}, "copies of"),
        (bert, {"task_type": "TOKEN_CLS", "bias": "all"}, "copies of"),
        (llama, {"use_dora": True}, "14 modules"),
        (gpt2, {"use_dora": True}, "modules"),
        (llama, {"trainable_token_indices": [4, 9]}, "trained tokens of"),
        (t5, {"bias": "none"}, "modules"),
    ],
    ids=["head", "biases", "dora", "dora of Conv1D", "tokens", "t5"],
)
def test_untrained_parts_are_no_effect(build, config, part):
    parts = untrained(build, **config)
    set_adapter(parts[0], None)
    with pytest.raises(AdapterFileError, match=f"equal the base's on a probe.*{part}"):
        checked(*parts)


def test_not_a_number_is_refused_with_the_first_module():
    def overflow(one):
        pairs = dict(one.factors)
        path = "model.layers.1.self_attn.q_proj"
        A, B = pairs[path]
        return replace(one, factors=pairs | {path: (A * 1e30, B * 1e30)})

    with pytest.raises(
        AdapterFileError, match=r"NaN or infinities.*first in model\.layers\.1\.self_attn\.q_proj"
    ):
        checked(*added(llama, overflow))


def test_a_base_that_gives_not_a_number_is_named_itself():
    model, adapter, injection = added(llama)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(AdapterFileError, match="the base itself gives NaN or inf"):
        checked(model, adapter, injection)


def test_nothing_stays_on_the_model():
    model, adapter, injection = added(llama, target_modules=["q_proj"])
    checked(model, adapter, injection)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.per_row_adapters is None and not layer._forward_hooks


def test_what_cannot_run_beside_others_is_refused(monkeypatch):
    def fails(self, layer, x):
        raise RuntimeError("no rows here\nand more")

    parts = added(llama)
    monkeypatch.setattr(per_row.PerRowAdapters, "__call__", fails)
    with pytest.raises(
        AdapterFileError, match=r"'mine' beside others: .* fails: no rows here.* merged"
    ):
        checked(*parts)


def test_adapted_positions_of_gpt2_cannot_have_an_adapter_for_each_row():
    """Their input is the same for all rows, so it has one row."""
    with pytest.raises(AdapterFileError, match="beside others"):
        checked(*added(gpt2, target_modules=["wpe"]))


def test_half_precision():
    model = with_adapter(llama().to(torch.bfloat16))
    adapter = Adapter.from_model(model)
    fresh = llama().to(torch.bfloat16)
    checked(fresh, adapter, add_adapter(fresh, adapter, "x", trainable=False))
