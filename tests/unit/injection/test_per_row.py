"""adapter_rows on whole models: a mixed batch is one row at a time."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fixtures.mixed_batches import NAMES, batch, picked, with_three
from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    delete_adapter,
    disable_adapters,
    merge_adapters,
    set_adapter,
    unload,
)
from lorakit.errors import AdapterNameError, AdapterStateError, ShapeError
from lorakit.layers.executors.per_row import PerRowAdapters
from tiny_models import TinyNet, bert, distilbert, gpt2, llama, randomize_, roberta, t5
from tolerances import LOGITS_TOLERANCE, largest_error

BUILDERS = [llama, gpt2, bert, distilbert, roberta, t5]


def assert_each_row_is_its_own(model, inputs, names, run=None):
    run = run or (lambda given: model(**given).logits)
    with torch.no_grad(), adapter_rows(model, names):
        mixed = run(inputs)
    outputs = []
    for name in dict.fromkeys(names):
        set_adapter(model, name)
        rows = [row for row, one in enumerate(names) if one == name]
        with torch.no_grad():
            alone = run(picked(inputs, rows))
        assert largest_error(mixed[rows], alone) < LOGITS_TOLERANCE, name
        outputs.append(alone)
    return outputs


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("targets", ["all-linear", "default"])
def test_a_mixed_batch_is_one_row_at_a_time(build, targets):
    options = {"target_modules": targets} if targets == "all-linear" else {}
    model = with_three(build, **options)
    outputs = assert_each_row_is_its_own(model, batch(model, len(NAMES)), NAMES)
    assert not torch.allclose(outputs[0][0], outputs[1][0])


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("build", [bert, gpt2, distilbert])
def test_trained_biases_and_heads_belong_to_their_rows(build, bias):
    model = with_three(build, bias=bias)
    assert_each_row_is_its_own(model, batch(model, len(NAMES)), NAMES)


def test_adapters_may_adapt_different_layers_and_dtypes():
    model = llama()
    for seed, (name, options, dtype) in enumerate(
        [
            ("a", {"target_modules": ["q_proj", "embed_tokens"]}, None),
            ("b", {"target_modules": ["down_proj", "lm_head"]}, torch.float64),
            ("c", {"target_modules": ["v_proj"], "modules_to_save": ["norm"]}, None),
        ]
    ):
        add_adapter(model, LoraConfig(r=2, **options), name, dtype=dtype)
        randomize_(model, seed=seed)
    assert_each_row_is_its_own(model, batch(model, len(NAMES)), NAMES)


def test_generating_decodes_each_row_with_its_own_adapter():
    model = with_three(llama, target_modules="all-linear")
    inputs = batch(model, len(NAMES))

    def run(given):
        tokens = model.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=None)
        return tokens.float()

    assert_each_row_is_its_own(model, inputs, NAMES, run)


@pytest.mark.parametrize("build", [t5, llama])
@pytest.mark.parametrize("mode", ["beams", "answers", "bias and head"])
def test_generating_repeats_the_names_as_it_repeats_the_rows(build, mode):
    # Of an encoder-decoder the encoder reads each row once, the decoder each beam.
    options = {"beams": {"num_beams": 3}, "answers": {"num_beams": 4, "num_return_sequences": 2}}
    head = {"lm_head" if build is llama else "shared"}
    settings = {"modules_to_save": [*head], "bias": "lora_only"} if mode == "bias and head" else {}
    model = with_three(build, target_modules=["q_proj" if build is llama else "q"], **settings)
    inputs = batch(model, len(NAMES))
    inputs.pop("decoder_input_ids", None)
    answers = 2 if mode == "answers" else 1

    def run(given):
        settings = options.get(mode, {"num_beams": 3})
        tokens = model.generate(**given, max_new_tokens=4, eos_token_id=None, **settings)
        return tokens.view(-1, answers, tokens.shape[-1]).float()

    assert_each_row_is_its_own(model, inputs, NAMES, run)
    with adapter_rows(model, NAMES), torch.no_grad():
        model(**batch(model, len(NAMES)))  # layers are prepared for each row once
        tokens = run(inputs)
        assert torch.equal(run(inputs), tokens)  # the encoder reads the rows as they are
    assert "_expand_inputs_for_generation" not in vars(model)
    with adapter_rows(model, NAMES), pytest.raises(ShapeError, match="repeats the names"):
        model(**batch(model, 3 * len(NAMES)))


def test_values_exchanged_inside_the_block_are_seen():
    model = with_three(llama)
    inputs = batch(model, 2)
    with torch.no_grad(), adapter_rows(model, ["a", "b"]):
        first = model(**inputs).logits
        for layer in model.modules():
            if hasattr(layer, "updates"):
                layer.updates["a"].lora_B.zero_()  # in place
                other = torch.zeros_like(layer.updates["b"].lora_B)
                layer.updates["b"].lora_B = nn.Parameter(other)  # other memory
        second = model(**inputs).logits
        model.double()  # all of them moved
        third = model(**inputs).logits
    set_adapter(model, None)
    with torch.no_grad():
        base = model(**inputs).logits
    assert not torch.allclose(first.double(), base)
    assert largest_error(second, base) < LOGITS_TOLERANCE
    assert largest_error(third, base) < 1e-12


def test_a_scaling_changed_inside_the_block_is_seen():
    model = with_three(llama)
    inputs = batch(model, 2)
    with torch.no_grad(), adapter_rows(model, ["a", None]):
        model(**inputs)
        for layer in model.modules():
            if hasattr(layer, "updates"):
                layer.updates["a"].scaling = 0.0
        silent = model(**inputs).logits
    with torch.no_grad(), disable_adapters(model):
        assert largest_error(silent, model(**inputs).logits) < LOGITS_TOLERANCE


def test_after_the_block_the_active_adapter_acts_again_and_nothing_is_left():
    model = with_three(llama)
    inputs = batch(model, 3)
    set_adapter(model, "b")
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    with torch.no_grad():
        expected = model(**inputs).logits
        with pytest.raises(RuntimeError, match="stop"), adapter_rows(model, ["a", "c", None]):
            model(**inputs)
            raise RuntimeError("stop")
        assert torch.equal(model(**inputs).logits, expected)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
    with adapter_rows(model, ["a", "c", None]):
        model(**inputs)
    unload(model)
    assert not any("per_row_adapters" in vars(module) for module in model.modules())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_made_inside_the_block(copier):
    model = with_three(llama)
    inputs = batch(model, 2)
    with torch.no_grad(), adapter_rows(model, ["a", None]):
        expected = model(**inputs).logits
        twin = copier(model)
        assert torch.equal(twin(**inputs).logits, expected)


# torch 2.13's own tracer makes an instance of the autograd function it traces.
@pytest.mark.slow(reason="compiles a model")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_compiled_it_computes_the_same():
    torch.compiler.reset()
    model = TinyNet()
    for r, name in enumerate("ab", start=1):
        config = LoraConfig(r=r, target_modules=["up", "down"], lora_alpha=4)
        add_adapter(model, config, name)
        randomize_(model, seed=r)
    ids = torch.arange(12).reshape(3, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with adapter_rows(model, ["b", None, "a"]):
        assert largest_error(compiled(ids), model(ids)) < LOGITS_TOLERANCE
    torch.compiler.reset()


CHANGES = {
    "set_adapter": lambda model: set_adapter(model, "a"),
    "delete_adapter": lambda model: delete_adapter(model, "a"),
    "merge_adapters": merge_adapters,
    "unload": unload,
    "add_adapter": lambda model: add_adapter(model, LoraConfig(r=1), "d"),
    "disable_adapters": lambda model: disable_adapters(model).__enter__(),
    "adapter_rows": lambda model: adapter_rows(model, ["a"]).__enter__(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_adapters_are_refused_inside(change):
    model = with_three(llama)
    with adapter_rows(model, ["a", "b"]), pytest.raises(AdapterStateError) as caught:
        change(model)
    assert "inside adapter_rows" in str(caught.value)
    with adapter_rows(model, ["a", "b"]):
        pass


def test_a_merged_model_is_refused():
    model = with_three(llama)
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match="Cannot choose adapters by row while adapters"):
        adapter_rows(model, ["a"]).__enter__()


@pytest.mark.parametrize("names", ["a", [], ()])
def test_names_that_are_no_list(names):
    with pytest.raises(AdapterNameError) as caught:
        adapter_rows(with_three(llama), names).__enter__()
    assert str(caught.value) == (
        f"Cannot choose adapters by row: got {names!r}, expected a name or None for each row of "
        "the batch. Pass a list; for one adapter in all rows call set_adapter."
    )


def test_an_unknown_name():
    with pytest.raises(AdapterNameError, match="No adapter is named 'd'; adapters here: a, b, c"):
        adapter_rows(with_three(llama), ["a", "d"]).__enter__()


def test_a_model_without_adapters():
    with pytest.raises(AdapterNameError, match="carries no adapter"):
        adapter_rows(nn.Linear(2, 2), ["a"]).__enter__()


@pytest.mark.parametrize("targets", ["q_proj", "embed_tokens"])
def test_a_batch_of_another_size(targets):
    model = with_three(llama, target_modules=[targets])
    with adapter_rows(model, ["a", "b"]), pytest.raises(ShapeError, match="given for 2 rows"):
        model(**batch(model, 3))


@torch.no_grad()
def test_rows_get_other_adapters_inside_the_block():
    model = with_three(llama)
    inputs = batch(model, 3)
    with adapter_rows(model, ["a", None, "b"]) as choice:
        for names in (["a", None, "b"], ["c", "a", "a"], [None, None, None], ["b", "c", "c"]):
            choice.choose(names)
            mixed = model(**inputs).logits
            choice.choose(names[:2])
            two = model(**{key: value[:2] for key, value in inputs.items()}).logits
            assert largest_error(mixed[:2], two) <= LOGITS_TOLERANCE
            for row, name in enumerate(names):
                choice.choose([name])
                alone = model(**{key: value[row : row + 1] for key, value in inputs.items()})
                assert largest_error(mixed[row : row + 1], alone.logits) <= LOGITS_TOLERANCE
        with pytest.raises(AdapterNameError, match="No adapter is named 'd'"):
            choice.choose(["d"])
    with pytest.raises(AdapterStateError, match="got a block that is over"):
        choice.choose(["a"])


def test_rows_that_backward_may_need_keep_their_adapters():
    model = with_three(llama)
    with adapter_rows(model, ["a", "b"]) as choice:
        model(**batch(model, 2)).logits.sum().backward()
        with pytest.raises(AdapterStateError, match="layers have run with gradients"):
            choice.choose(["b", "a"])


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {}])
def test_values_that_change_between_decoded_tokens_are_seen(options):
    model = with_three(gpt2, **options)
    inputs = batch(model, 2)
    with adapter_rows(model, ["a", "b"]):
        before = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)
        for name, parameter in model.named_parameters():
            if ".a." in name and not name.endswith("lora_A"):
                parameter.mul_(1.5)
        after = model(**inputs).logits
    assert largest_error(after[1], before[1]) == 0
    with adapter_rows(model, ["a", "b"]):
        expected = model(**inputs).logits
    assert largest_error(after, expected) == 0
    assert largest_error(after[0], before[0]) > 0.01


def test_what_layers_prepared_serves_the_next_block_with_the_same_rows(monkeypatch):
    model, made = with_three(llama), []
    prepare = PerRowAdapters._prepare

    def counting(self, layer, x):
        made.append(layer)
        return prepare(self, layer, x)

    monkeypatch.setattr(PerRowAdapters, "_prepare", counting)
    x = batch(model, len(NAMES))
    with torch.no_grad():
        for _ in range(2):
            with adapter_rows(model, NAMES):
                expected = model(**x).logits
        assert len(made) == 14
        add_adapter(model, LoraConfig(r=2), "d")  # an exchange that concerns no row
        randomize_(model.model.layers[0].self_attn.q_proj.updates["d"])
        with adapter_rows(model, NAMES):
            assert torch.equal(model(**x).logits, expected)
        assert len(made) == 14
        delete_adapter(with_active(model, None), "a")
        add_adapter(model, LoraConfig(r=1), "a")
        with adapter_rows(model, NAMES):
            assert not torch.equal(model(**x).logits, expected)
        assert len(made) == 28


def with_active(model, names):
    set_adapter(model, names)
    return model
