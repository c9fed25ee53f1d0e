"""One layer whose rows, or segments, have different adapters."""

import pickle

import pytest
import torch
from torch import nn

from lorakit.errors import AdapterStateError, ShapeError
from lorakit.layers import LoraConv1d, LoraEmbedding, LoraLinear, LowRankUpdate
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.layers.executors.separate_batches import SeparateBatches
from lorakit.layers.executors.single import run_single
from tolerances import TOLERANCE, largest_error

NAMES = ["b", None, "a", "b"]


def adapted(plain, adapted_class, columns, rows):
    torch.manual_seed(0)
    layer = adapted_class.adapt_in_place(plain)
    for r, name in enumerate("ab", start=1):
        layer.updates[name] = LowRankUpdate(torch.randn(r, columns), torch.randn(rows, r), 0.5)
    return layer


KINDS = {
    "linear": (lambda: adapted(nn.Linear(6, 4), LoraLinear, 6, 4), torch.randn(4, 3, 6)),
    "embedding": (
        lambda: adapted(nn.Embedding(7, 4), LoraEmbedding, 7, 4),
        torch.arange(4)[:, None],
    ),
    "convolution": (lambda: adapted(nn.Conv1d(3, 4, 2), LoraConv1d, 6, 4), torch.randn(4, 3, 5)),
}


def enter(layer, rows):
    layer.per_row_adapters = rows
    layer.choose_executor()
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_that_of_its_adapter(kind):
    build, x = KINDS[kind]
    layer = build()
    mixed = enter(layer, PerRowAdapters(NAMES))(x)
    del layer.per_row_adapters
    for row, name in enumerate(NAMES):
        layer.activate(() if name is None else (name,))
        assert largest_error(mixed[row], layer(x[row : row + 1])[0]) <= TOLERANCE[torch.float32]


def test_segments_of_an_embedding():
    layer = KINDS["embedding"][0]()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 0]])
    mixed = enter(layer, PerRowAdapters(["a", None, "b"], [2, 1, 4]))(ids)
    del layer.per_row_adapters
    for name, place in (("a", slice(0, 2)), (None, slice(2, 3)), ("b", slice(3, 7))):
        layer.activate(() if name is None else (name,))
        assert largest_error(mixed[:, place], layer(ids[:, place])) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("lengths", [None, [2, 2]])
def test_another_number_of_rows_or_tokens(lengths):
    layer = enter(KINDS["embedding"][0](), PerRowAdapters(["a", "b"], lengths))
    with pytest.raises(ShapeError, match="Adapters are given for"):
        layer(torch.zeros(3, 1, dtype=torch.long))


def test_after_the_block_layers_forget_and_backward_does_not_rerun_them():
    layer, x = KINDS["linear"][0](), KINDS["linear"][1]
    layer.activate(("a",))
    rows = PerRowAdapters(NAMES)
    enter(layer, rows)(x)
    rows.is_over = True
    assert layer.executor is rows
    layer(x)
    assert layer.executor is run_single

    class Rerun(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h

        @staticmethod
        def backward(ctx, g):
            enter(layer, rows)(x)

    h = torch.zeros(1, requires_grad=True)
    with pytest.raises(AdapterStateError, match="runs a layer again after the adapter_rows block"):
        Rerun.apply(h).sum().backward()


def test_copies_hold_names_and_lengths():
    twin = pickle.loads(pickle.dumps(PerRowAdapters(["a", None], [3, 1])))
    assert (twin.names, twin.lengths, twin.index) == (("a", None), (3, 1), (0, -1))


def test_what_two_batches_in_turn_need_is_prepared_once():
    layer, x = KINDS["linear"][0](), torch.randn(3, 1, 6)
    rows = PerRowAdapters(NAMES)
    enter(layer, rows)
    turns = [["a", None, "b"], ["b", "b", None]]
    with torch.no_grad():
        outputs, prepared = {}, {}
        for names in turns * 3:
            rows.choose(names)
            key = tuple(names)
            outputs.setdefault(key, layer(x))
            assert torch.equal(layer(x), outputs[key])
            terms = layer.known_terms.prepared.rows
            assert prepared.setdefault(key, terms) is terms
        layer.updates["a"].scaling = 2.0
        rows.choose(turns[0])
        assert not torch.equal(layer(x), outputs[tuple(turns[0])])
        rows.choose(turns[1])
        assert torch.equal(layer(x), outputs[tuple(turns[1])])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_layer_computes_the_same(kind):
    build, x = KINDS[kind]
    layer = build()
    expected = enter(layer, PerRowAdapters(NAMES))(x)
    layer.known_terms, rows = None, PerRowAdapters(NAMES)
    enter(layer, rows)
    rows.prepare([layer], tokens=12)
    assert (layer.known_terms is not None) is layer.is_matrix_product
    assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_what_is_prepared_is_used_only_for_inputs_that_it_fits():
    layer, x = KINDS["linear"][0](), torch.randn(4, 1, 6)
    rows = PerRowAdapters(NAMES)
    expected = enter(layer, rows)(x)
    assert torch.equal(layer(x), expected)
    strided = layer(torch.stack((x, x), -1)[..., 0])
    assert largest_error(strided, expected) <= TOLERANCE[torch.float32]
    twice = layer(x.expand(4, 2, 6).contiguous())
    assert largest_error(twice, expected.expand_as(twice)) <= TOLERANCE[torch.float32]
    with pytest.raises(ShapeError, match="Adapters are given for 4 rows"):
        layer(x[:2])
    with torch.enable_grad():
        assert layer(x).requires_grad
    assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_preparing_draws_no_mask():
    layer, rows = KINDS["linear"][0](), PerRowAdapters(NAMES)
    for update in layer.updates.values():
        update.drop_probability, update.training = 0.5, True
    enter(layer, rows)
    before = torch.get_rng_state()
    rows.prepare([layer], 3)
    assert torch.equal(torch.get_rng_state(), before) and layer.known_terms is None


def test_preparing_with_gradients_is_left_to_the_layer():
    layer, rows = KINDS["linear"][0](), PerRowAdapters(NAMES)
    enter(layer, rows)
    rows.prepare([layer], 3)
    assert layer.known_terms is None


def gradients(layer, x, rows):
    layer.zero_grad()
    enter(layer, rows)(x).pow(3).sum().backward()
    return [parameter.grad for parameter in layer.updates.parameters()]


def test_steps_of_training_prepare_once():
    layer, x = KINDS["linear"][0](), KINDS["linear"][1]
    expected = gradients(layer, x, PerRowAdapters(NAMES))
    terms = layer.known_terms.prepared.rows
    with torch.no_grad():
        layer(x)
        layer.updates["a"].lora_B.mul_(2)
    doubled = gradients(layer, x, PerRowAdapters(NAMES))
    assert layer.known_terms.prepared.rows is terms
    layer.known_terms = None
    for got, wanted in zip(doubled, gradients(layer, x, PerRowAdapters(NAMES)), strict=True):
        assert torch.equal(got, wanted)
    assert not torch.equal(expected[0], doubled[0])
    layer.updates["a"].scaling = 2.0
    assert not torch.equal(gradients(layer, x, PerRowAdapters(NAMES))[0], doubled[0])


def test_updates_with_dropout_or_in_another_dtype_are_not_prepared_for_training():
    layer, x = KINDS["linear"][0](), KINDS["linear"][1]
    for change in (lambda u: setattr(u, "drop_probability", 0.5), lambda u: u.double()):
        change(layer.updates["a"])
        gradients(layer, x, PerRowAdapters(NAMES))
        assert layer.known_terms is None
        layer.updates["a"].drop_probability = 0.0


def test_padding_of_separate_batches_has_no_update():
    layer, x = KINDS["linear"][0](), KINDS["linear"][1]
    padded = PerRowAdapters(NAMES, batches=SeparateBatches((3, 3, 2, 3), lambda _: None))
    full = gradients(layer, x, PerRowAdapters(NAMES))
    h = enter(layer, padded)(x)
    assert layer.known_terms.prepared.rows.own_tokens == (3, 3, 2, 3)
    base = enter(layer, PerRowAdapters((*NAMES[:2], None, *NAMES[3:])))(x)
    assert torch.equal(h[2, 2], base[2, 2]) and not torch.equal(h[2, 1], base[2, 1])
    got = gradients(layer, x, padded)
    wanted = gradients(layer, x[:, :2], PerRowAdapters(NAMES))  # row 2 is the only one of "a"
    for one, other, all_three in zip(got[:2], wanted[:2], full[:2], strict=True):
        assert largest_error(one, other) <= TOLERANCE[torch.float32]
        assert not torch.equal(one, all_three)
