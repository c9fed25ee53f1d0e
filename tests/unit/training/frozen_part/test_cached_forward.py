"""A model with the output of its frozen blocks from a store: its values, gradients and calls."""

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from lorakit.training.frozen_part.blocks import BlockOutput, find_frozen_blocks
from lorakit.training.frozen_part.cached_forward import caching_frozen_part
from lorakit.training.frozen_part.store import HiddenStates
from tiny_models.architectures import gpt2, llama, tiny

PADDED = {
    "right": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
    "left": [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
}


@pytest.fixture
def store(tmp_path):
    opened = HiddenStates(tmp_path, "base", 10**8)
    yield opened
    opened.close()


DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
DROPOUT += ("hidden_dropout_prob", "attention_probs_dropout_prob")


def adapted(build=llama, layers=4, first=2):
    sizes = {"num_hidden_layers": layers, **dict.fromkeys(DROPOUT, 0.0)}
    model = build(**sizes).requires_grad_(False)
    chosen = tuple(range(first, layers))
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", layers_to_transform=chosen))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.train()


def batch(mask):
    mask = torch.tensor(mask)
    ids = torch.arange(mask.numel()).view_as(mask) % 30 + 3
    return {"input_ids": ids * mask, "attention_mask": mask}


def gradients(model, inputs, real):
    model.zero_grad()
    logits = model(**inputs).logits[real]
    logits.square().sum().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def calls_of(block, inner="mlp"):
    made = []
    block.get_submodule(inner).register_forward_hook(lambda *_: made.append(1))
    return made


@pytest.mark.parametrize("build", [llama, gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("side", PADDED)
def test_values_and_gradients_are_the_same_and_the_blocks_do_not_run(build, side, store):
    model, inputs = adapted(build), batch(PADDED[side])
    real = inputs["attention_mask"].bool()
    blocks = find_frozen_blocks(model)
    assert blocks.depth == 2
    expected = gradients(model, inputs, real)
    calls = [calls_of(block) for block in blocks.frozen]
    with caching_frozen_part(model, blocks, store):
        computed = gradients(model, inputs, real)
        kept = gradients(model, inputs, real)
    assert [len(made) for made in calls] == [1, 1]
    for logits, found in (computed, kept):
        assert torch.equal(logits, expected[0])
        for gradient, other in zip(found, expected[1], strict=True):
            assert torch.equal(gradient, other)
    after = gradients(model, inputs, real)
    assert torch.equal(after[0], expected[0]) and [len(made) for made in calls] == [2, 2]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("Bloom", "CausalLM"),
        ("Falcon", "CausalLM"),
        ("DebertaV2", "TokenClassification"),
    ],
)
def test_blocks_that_return_a_tuple_do_not_run_either(architecture, task, store):
    def build(**sizes):
        return tiny(architecture, f"{architecture}For{task}", **sizes)

    model, inputs = adapted(build), batch(PADDED["right"])
    real = inputs["attention_mask"].bool()
    blocks = find_frozen_blocks(model)
    assert blocks.depth == 2
    outputs = []
    handle = blocks.frozen[0].register_forward_hook(lambda *args: outputs.append(args[-1]))
    expected = gradients(model, inputs, real)
    handle.remove()
    form = BlockOutput.of(outputs[0])
    assert form.others == 1
    calls = calls_of(blocks.frozen[1], "output" if architecture == "DebertaV2" else "mlp")
    with caching_frozen_part(model, blocks, store, form) as forward:
        found = [gradients(model, inputs, real) for _ in ("computed", "kept")]
    assert len(calls) == 1 and forward.examples == 4
    for logits, others in found:
        assert torch.equal(logits, expected[0])
        for gradient, other in zip(others, expected[1], strict=True):
            assert torch.equal(gradient, other)


def test_an_example_is_found_in_another_batch_with_other_padding(store):
    model, inputs = adapted(), batch(PADDED["right"])
    alone = {name: tensor[1:, :3] for name, tensor in inputs.items()}
    blocks = find_frozen_blocks(model)
    expected = model(**alone).logits
    with caching_frozen_part(model, blocks, store):
        model(**inputs)
        calls = calls_of(blocks.frozen[0])
        got = model(**alone).logits
    assert not calls
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_known_example_keeps_its_states_in_a_batch_that_is_computed(store):
    model, inputs = adapted(), batch(PADDED["right"])
    alone = {name: tensor[1:, :3] for name, tensor in inputs.items()}
    blocks = find_frozen_blocks(model)
    seen = []
    model.model.layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with caching_frozen_part(model, blocks, store):
        model(**alone)
        (key,) = [key for (key,) in store._rows("SELECT key FROM kept")]
        states = store.get([key])[key] * 2  # other bits, as another batch would have given
        store.put({key: states})
        for _ in ("partly known", "known"):
            model(**inputs)
    _, first, second = seen
    assert torch.equal(first, second) and torch.equal(first[1, :3], states)
    assert not first[1, 3:].any()


def test_forwards_that_were_set_before_are_set_after(store):
    model, inputs = adapted(), batch(PADDED["right"])
    blocks = find_frozen_blocks(model)
    calls = []
    inner = blocks.frozen[0].forward

    def placing_inputs(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    blocks.frozen[0].forward = placing_inputs
    with caching_frozen_part(model, blocks, store):
        model(**inputs)
    assert calls and vars(blocks.frozen[0])["forward"] is placing_inputs
    assert "forward" not in vars(blocks.frozen[1])


def test_an_example_that_lies_elsewhere_in_the_sequence_is_another(store):
    model = adapted(gpt2)
    blocks = find_frozen_blocks(model)
    right = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    left = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with caching_frozen_part(model, blocks, store):
        calls = calls_of(blocks.frozen[0])
        for inputs in (right, left, right, left):
            model(**inputs)
    assert len(calls) == 2


def test_another_mask_or_type_is_another_example(store):
    model = adapted()
    blocks = find_frozen_blocks(model)
    ids = torch.tensor([[5, 6, 7]])
    with caching_frozen_part(model, blocks, store):
        calls = calls_of(blocks.frozen[0])
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2]]))
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 0]]))
        model(input_ids=ids)
        assert len(calls) == 3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=ids)
        assert len(calls) == 4
        model(input_ids=ids)
        assert len(calls) == 4


def test_inputs_that_are_no_token_ids_run_as_ever(store):
    model = adapted()
    blocks = find_frozen_blocks(model)
    embedded = torch.randn(1, 3, model.config.hidden_size)
    expected = model(inputs_embeds=embedded).logits
    with caching_frozen_part(model, blocks, store):
        for _ in range(2):
            assert torch.equal(model(inputs_embeds=embedded).logits, expected)
        model.eval()
        made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
    assert torch.equal(
        made, model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
    )


def test_a_failed_call_leaves_no_batch_behind(store):
    model, inputs = adapted(), batch(PADDED["right"])
    blocks = find_frozen_blocks(model)
    with caching_frozen_part(model, blocks, store):
        model(**inputs)
        with pytest.raises(TypeError):
            model(**inputs, unknown_argument=object(), labels="no")
        other = {**inputs, "input_ids": inputs["input_ids"] + 1}
        calls = calls_of(blocks.frozen[0])
        model(**other)
        assert calls


def test_examples_that_begin_alike_share_what_they_begin_with(store):
    model = adapted()
    blocks = find_frozen_blocks(model)
    one, other = ({"input_ids": torch.tensor([ids])} for ids in ([5, 6, 7, 8], [5, 6, 9, 8]))
    expected = [model(**inputs).logits for inputs in (one, other)]
    with caching_frozen_part(model, blocks, store, piece_tokens=2):
        for inputs in (one, other):
            model(**inputs)
        assert len(store._rows("SELECT key FROM kept")) == 3, "one of two pieces is that of both"
        calls = calls_of(blocks.frozen[0])
        got = [model(**inputs).logits for inputs in (one, other)]
    assert not calls
    for logits, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
