import pytest
import torch

from lorakit import (
    LoraConfig,
    active_adapters,
    adapter_names,
    add_adapter,
    delete_adapter,
    disable_adapters,
    merge_adapters,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.errors import AdapterNameError, AdapterStateError
from lorakit.injection import adapter_config
from tiny_models import (
    TinyNet,
    assert_untouched,
    distilbert,
    gpt2,
    llama,
    logits,
    randomize_,
    snapshot,
    train_steps,
)
from tiny_models.adapted import two_adapters
from tolerances import LOGITS_TOLERANCE, largest_error


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def of(model, name):
    return {n for n, _ in model.named_parameters() if f".{name}." in n}


def outputs(model, *choices):
    made = []
    for choice in choices:
        set_adapter(model, choice)
        made.append(logits(model))
    return made


def test_switching_changes_outputs_and_gradients():
    model = two_adapters(llama())
    assert adapter_names(model) == ("a", "b")
    assert active_adapters(model) == ("b",)
    b, a, none, b_again = outputs(model, "b", "a", None, "b")
    assert torch.equal(b, b_again)
    assert not torch.allclose(a, b) and not torch.allclose(none, a)
    assert trained(model) == of(model, "b")
    set_adapter(model, "a")
    assert trained(model) == of(model, "a")
    set_adapter(model, ["a", "b"])
    assert trained(model) == of(model, "a") | of(model, "b")
    set_adapter(model, [])
    assert active_adapters(model) == () and trained(model) == set()


def test_no_adapter_is_the_base_bit_for_bit():
    model = llama()
    base = logits(model)
    two_adapters(model)
    assert torch.equal(outputs(model, None)[0], base)
    set_adapter(model, ["a", "b"])
    with disable_adapters(model):
        assert torch.equal(logits(model), base)
        assert active_adapters(model) == ()
    assert active_adapters(model) == ("a", "b")


def test_two_active_adapters_add_their_updates():
    """On a model that is linear in the adapted weight, so that the sum shows in the output."""
    model = TinyNet()
    two_adapters(model, target_modules=["classifier"])
    none, a, b, both = outputs(model, None, "a", "b", ["a", "b"])
    assert largest_error(both - none, (a - none) + (b - none)) < LOGITS_TOLERANCE


def test_a_name_given_twice_acts_once():
    model = two_adapters(TinyNet(), target_modules=["classifier"])
    once, twice = outputs(model, "a", ["a", "a"])
    assert torch.equal(once, twice)
    assert active_adapters(model) == ("a",)


def test_adapters_of_different_layers_and_ranks_together():
    model = llama()
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "a")
    add_adapter(model, LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False), "b")
    none, a, b, both = outputs(model, None, "a", "b", ["a", "b"])
    assert len({t.sum().item() for t in (none, a, b, both)}) == 4


def test_disable_keeps_gradients_of_the_active_adapter():
    model = two_adapters(llama())
    with disable_adapters(model):
        assert trained(model) == set()
    assert trained(model) == of(model, "b")


def test_disable_comes_back_after_an_error():
    model = two_adapters(llama())
    with pytest.raises(ZeroDivisionError), disable_adapters(model):
        1 / 0  # noqa: B018
    assert active_adapters(model) == ("b",)


def test_disable_inside_disable():
    model = two_adapters(llama())
    with disable_adapters(model):
        with disable_adapters(model):
            pass
        assert active_adapters(model) == ()
    assert active_adapters(model) == ("b",)


def test_an_adapter_deleted_while_disabled_does_not_come_back():
    model = two_adapters(llama())
    with disable_adapters(model):
        delete_adapter(model, "b")
    assert active_adapters(model) == ()
    assert adapter_names(model) == ("a",)


def test_every_adapter_removed_while_disabled():
    model = llama()
    before = snapshot(model)
    two_adapters(model)
    with disable_adapters(model):
        unload(model)
    assert_untouched(model, before)


def test_disabling_serves_as_the_reference_of_a_training_step():
    """DPO and its like run the base inside the step that trains the adapter."""
    model = two_adapters(llama())
    from tiny_models import tokens

    inputs = tokens(model)
    with disable_adapters(model), torch.no_grad():
        reference = model(**inputs).logits
    loss = (model(**inputs).logits - reference).square().sum()
    with disable_adapters(model):
        pass
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == of(model, "b")


def test_switching_tasks_on_a_shared_base():
    model = distilbert()
    before, base = snapshot(model), logits(model)
    heads = {}
    for name in ("topic", "mood"):
        add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_lin"]), name)
        train_steps(model, 2)
        heads[name] = logits(model)
    set_adapter(model, "topic")
    assert torch.equal(logits(model), heads["topic"])
    set_adapter(model, "mood")
    assert torch.equal(logits(model), heads["mood"])
    set_adapter(model, None)
    assert torch.equal(logits(model), base)
    unload(model)
    assert_untouched(model, before)


def test_training_one_adapter_leaves_the_other_alone():
    model = two_adapters(distilbert(), task_type="SEQ_CLS")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if ".a." in n}
    train_steps(model, 2)
    for name, value in frozen.items():
        assert torch.equal(model.get_parameter(name), value), name


@pytest.mark.parametrize(
    "options,where",
    [
        ({"task_type": "SEQ_CLS"}, "pre_classifier"),
        ({"bias": "lora_only"}, "distilbert.transformer.layer.0.attention.q_lin.bias"),
        ({"bias": "all"}, "distilbert.embeddings.LayerNorm"),
    ],
)
def test_two_adapters_with_the_same_head_or_bias_cannot_act_together(options, where):
    if "task_type" not in options:
        options["exclude_modules"] = ["classifier", "pre_classifier"]
    model = two_adapters(distilbert(), target_modules=["q_lin"], **options)
    before = snapshot(model)
    with pytest.raises(AdapterStateError) as caught:
        set_adapter(model, ["a", "b"])
    assert str(caught.value) == (
        f"Adapters ['a', 'b'] cannot act together: each has its own {where!r}, expected one at "
        "most. Activate one of them, or use adapters without trained heads and biases."
    )
    assert active_adapters(model) == ("b",)
    assert_untouched(model, before)


@pytest.mark.parametrize("order", [("lora", "head"), ("head", "lora")])
def test_one_adapts_what_another_trains_in_full(order):
    """Each alone must work, both together must not: the copy would hide the update."""
    model = TinyNet()
    before, base = snapshot(model), logits(model)
    configs = {
        "lora": LoraConfig(r=2, target_modules=["classifier"]),
        "head": LoraConfig(r=2, target_modules=["up"], modules_to_save=["classifier"]),
    }
    for name in order:
        add_adapter(model, configs[name], name)
        randomize_(model)
    lora, head, none = outputs(model, "lora", "head", None)
    assert torch.equal(none, base)
    assert not torch.allclose(lora, base) and not torch.allclose(head, lora)
    with pytest.raises(AdapterStateError, match=r"cannot act together.*classifier"):
        set_adapter(model, ["lora", "head"])
    for name, kept in (("lora", head), ("head", lora)):
        rest = "head" if name == "lora" else "lora"
        twin = TinyNet()
        for each in order:
            add_adapter(twin, configs[each], each)
            randomize_(twin)
        set_adapter(twin, rest)
        delete_adapter(twin, name)
        assert torch.equal(logits(twin), kept)
        set_adapter(twin, None)
        delete_adapter(twin, rest)
        assert torch.equal(logits(twin), base)
    unload(model)
    assert_untouched(model, before)


def test_a_part_of_a_head_that_another_adapter_adapts():
    from tiny_models import roberta

    model = roberta()
    add_adapter(model, LoraConfig(r=1, target_modules=["classifier.dense"]), "lora")
    add_adapter(model, LoraConfig(r=1, target_modules=["query"], task_type="SEQ_CLS"), "head")
    with pytest.raises(AdapterStateError, match=r"cannot act together.*classifier"):
        set_adapter(model, ["lora", "head"])
    assert active_adapters(model) == ("head",)


class TestDelete:
    def test_deleting_one_keeps_the_other(self):
        model = two_adapters(llama())
        set_adapter(model, "a")
        kept = logits(model)
        delete_adapter(model, "b")
        assert adapter_names(model) == active_adapters(model) == ("a",)
        assert torch.equal(logits(model), kept)
        assert of(model, "b") == set()

    @pytest.mark.parametrize("active", ["b", ["a", "b"]])
    def test_an_active_one_is_refused_and_the_model_left_as_it_was(self, active):
        model = two_adapters(llama())
        set_adapter(model, active)
        before, outputs = snapshot(model), logits(model)
        with pytest.raises(
            AdapterStateError,
            match=r"Cannot delete adapter 'b': it is active.*Call set_adapter\(model, 'a'\) first",
        ):
            delete_adapter(model, "b")
        assert_untouched(model, before)
        assert torch.equal(logits(model), outputs)

    def test_layers_no_adapter_uses_become_plain(self):
        model = llama()
        add_adapter(model, LoraConfig(r=1, target_modules=["q_proj"]), "a")
        add_adapter(model, LoraConfig(r=1, target_modules=["q_proj", "v_proj"]), "b")
        set_adapter(model, "a")
        delete_adapter(model, "b")
        kinds = {type(m.v_proj).__name__ for m in (layer.self_attn for layer in model.model.layers)}
        assert kinds == {"Linear"}
        assert type(model.model.layers[0].self_attn.q_proj).__name__ == "LoraLinear"

    def test_deleting_the_last_one_gives_everything_back(self):
        model = distilbert()
        model.distilbert.embeddings.requires_grad_(False)
        before = snapshot(model)
        two_adapters(model, task_type="SEQ_CLS", bias="all")
        delete_adapter(model, "a")
        set_adapter(model, None)
        delete_adapter(model, "b")
        assert_untouched(model, before)

    def test_a_deleted_name_can_be_used_again(self):
        model = two_adapters(llama())
        delete_adapter(model, "a")
        add_adapter(model, LoraConfig(r=3), "a")
        assert adapter_config(model, "a").r == 3


def test_requires_grad_of_the_base_is_restored_as_it_was():
    model = gpt2()
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.h[0].requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    two_adapters(model)
    assert trained(model) == of(model, "b")
    unload(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


class TestErrors:
    def test_a_name_that_is_not_there(self):
        model = two_adapters(llama())
        for action in (
            lambda: set_adapter(model, ["a", "topicc"]),
            lambda: delete_adapter(model, "topicc"),
            lambda: adapter_config(model, "topicc"),
        ):
            with pytest.raises(AdapterNameError) as caught:
                action()
            assert str(caught.value) == "No adapter is named 'topicc'; adapters here: a, b."
        assert active_adapters(model) == ("b",)

    def test_the_nearest_name_is_suggested(self):
        model = TinyNet()
        add_adapter(model, LoraConfig(r=1), "topic")
        with pytest.raises(KeyError, match="Did you mean 'topic'"):
            set_adapter(model, "topics")

    @pytest.mark.parametrize(
        "action",
        [
            lambda m: set_adapter(m, None),
            unload,
            lambda m: delete_adapter(m, "a"),
            merge_adapters,
            unmerge_adapters,
            lambda m: disable_adapters(m).__enter__(),
            adapter_config,
        ],
    )
    def test_a_model_without_adapters(self, action):
        with pytest.raises(AdapterNameError) as caught:
            action(TinyNet())
        assert str(caught.value) == (
            "This TinyNet carries no adapter. Call add_adapter or load_adapter on it first (on "
            "this very object, not on a part of it)."
        )

    def test_names_of_a_model_without_adapters(self):
        assert adapter_names(TinyNet()) == active_adapters(TinyNet()) == ()

    @pytest.mark.parametrize(
        "action,what",
        [
            (lambda m: set_adapter(m, "a"), "change the active adapters"),
            (unload, "unload the adapters"),
            (lambda m: delete_adapter(m, "a"), "delete an adapter"),
            (lambda m: disable_adapters(m).__enter__(), "disable the adapters"),
            (merge_adapters, "merge"),
        ],
    )
    def test_a_merged_model_refuses(self, action, what):
        model = two_adapters(TinyNet())
        merge_adapters(model)
        merged = logits(model)
        with pytest.raises(AdapterStateError) as caught:
            action(model)
        assert str(caught.value) == (
            f"Cannot {what} while adapters ['b'] are merged into the weights. Call "
            "unmerge_adapters(model) first."
        )
        assert torch.equal(logits(model), merged)
