"""What fails leaves a model as it was: the adapters that act, the weights and the gradients."""

import pytest
import torch

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    combine_adapters,
    delete_adapter,
    disable_adapters,
    hotswap_adapter,
    initialize_from_data,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import load_adapters, save_adapters
from lorakit.injection.state import state_of
from lorakit.layers import AdaptedLayer, ReplacedModule
from tiny_models import bert, logits, randomize_, tokens


class InjectedError(Exception):
    """What is raised in the middle of an operation."""


def failing_on_call(number):
    """Return a function that wraps another one and raises on the n-th call."""

    def wrap(function):
        calls = iter(range(1, 10**6))

        def wrapped(*args, **kwargs):
            if next(calls) == number:
                raise InjectedError
            return function(*args, **kwargs)

        return wrapped

    return wrap


def state(model):
    """Return everything about a model and its adapters that an operation may change."""
    remembered = state_of(model)
    return {
        "classes": {path: type(module) for path, module in model.named_modules()},
        "training": {path: module.training for path, module in model.named_modules()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "acting": {
            path: m.active_updates if isinstance(m, AdaptedLayer) else m.active_copy
            for path, m in model.named_modules()
            if isinstance(m, (AdaptedLayer, ReplacedModule))
        },
        "kept": {
            path: {name: id(parameter) for name, parameter in m.kept_parameters.items()}
            for path, m in model.named_modules()
            if isinstance(m, AdaptedLayer)
        },
        "remembered": None
        if remembered is None
        else {key: str(value) for key, value in vars(remembered).items() if key != "rows"},
        "outputs": logits(model),
    }


def assert_same(before, after):
    for key in ("values", "outputs"):
        one, other = before.pop(key), after.pop(key)
        if key == "outputs":
            one, other = {"": one}, {"": other}
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one), key
    assert before == after


def with_two(tmp_path=None, **options):
    """Return a classifier with adapters "a" and "b", of which "a" acts."""
    model = bert("BertForSequenceClassification")
    for name, seed in (("a", 1), ("b", 2)):
        add_adapter(model, LoraConfig(**({"r": 2} | options)), name)
        randomize_(model, seed=seed)
    set_adapter(model, "a")
    return model


def bare():
    return bert("BertForSequenceClassification")


def merged():
    model = with_two()
    merge_adapters(model)
    return model


def with_rows():
    """Return a model in which both adapters require gradients, as a batch had rows of both."""
    model = with_two()
    with adapter_rows(model, ["a", "b"]):
        model(**tokens(model))
    return model


def with_data_start(start):
    model = bert("BertForSequenceClassification")
    add_adapter(model, LoraConfig(r=2, init_lora_weights=start))
    return model


def saved(tmp_path, **options):
    model = bare()
    add_adapter(model, LoraConfig(**({"r": 2} | options)))
    randomize_(model, seed=5)
    save_adapter(model, tmp_path)
    return tmp_path


def batch(model):
    return {**tokens(model), "labels": torch.tensor([0, 1])}


def batches_that_end(model):
    yield batch(model)
    raise InjectedError


LINEAR = "lorakit.layers.kinds.linear.LoraLinear"
UPDATE = "lorakit.layers.updates.low_rank_update.LowRankUpdate"
INJECT = "lorakit.injection.inject"
NEW_PARTS = "lorakit.injection.new_parts"
DATA = "lorakit.adapters.on_model.initialize_from_data"
# What is done, on which model, and the function that fails, on which of its calls.
FAILURES = {
    f"{what} ({where.rsplit('.', 1)[-1]}, call {call})": (make, act, where, call)
    for what, make, act, where, calls in (
        ("merge", with_two, lambda m, d: merge_adapters(m), f"{LINEAR}.merge", (1, 3)),
        ("merge another", with_two, lambda m, d: merge_adapters(m, "b"), f"{LINEAR}.merge", (1, 3)),
        (
            "merge after rows",
            with_rows,
            lambda m, d: merge_adapters(m, "b"),
            f"{LINEAR}.put_merged",
            (2,),
        ),
        (
            "merge for good",
            with_two,
            lambda m, d: merge_and_unload(m, "b"),
            f"{LINEAR}.merge",
            (2,),
        ),
        ("unmerge", merged, lambda m, d: unmerge_adapters(m), f"{LINEAR}.unmerge", (1, 3)),
        *(
            ("add", make, lambda m, d: add_adapter(m, LoraConfig(r=3), "c"), where, (1,))
            for make in (bare, with_two, with_rows)
            for where in (
                f"{INJECT}.recorded_config",
                f"{NEW_PARTS}.full_copy",
                f"{INJECT}.group_siblings",
                f"{INJECT}.activate",
                f"{INJECT}.disable_fast_paths",
                f"{INJECT}.describe_injection",
            )
        ),
        *(
            ("add", make, lambda m, d: add_adapter(m, LoraConfig(r=3), "c"), where, (1, 4))
            for make in (bare, with_two)
            for where in (f"{UPDATE}.set_factors_", f"{INJECT}._add_update")
        ),
        (
            "load",
            with_two,
            lambda m, d: load_adapter(m, saved(d), "c"),
            f"{NEW_PARTS}.saved_tensors",
            (1,),
        ),
        (
            "combine",
            lambda: with_two(exclude_modules=["classifier"]),
            lambda m, d: combine_adapters(m, {"a": 1.0, "b": 1.0}, "c"),
            f"{INJECT}._add_update",
            (3,),
        ),
        (
            "hot swap",
            with_two,
            lambda m, d: hotswap_adapter(m, saved(d, r=1), "a"),
            f"{UPDATE}.exchange_factors_",
            (1, 3),
        ),
        *(
            (
                f"{start} from data",
                lambda start=start: with_data_start(start),
                lambda m, d: initialize_from_data(m, [batch(m)]),
                where,
                calls,
            )
            for start, where, calls in (
                ("lora_ga", "lorakit.initialization.lora_ga.gradient_factors", (1, 3)),
                ("lora_ga", f"{DATA}.mean_gradients", (1,)),
                ("eva", f"{DATA}.redistribute_ranks", (1,)),
                ("eva", "lorakit.injection.change_ranks._resize_update", (1, 2)),
            )
        ),
    )
    for call in calls
}


@pytest.mark.parametrize(("make", "act", "where", "call"), FAILURES.values(), ids=FAILURES)
def test_a_failure_in_the_middle(make, act, where, call, tmp_path, monkeypatch):
    model = make()
    before = state(model)
    owner, _, name = where.rpartition(".")
    target = pytest.importorskip(owner) if owner.rpartition(".")[2][0].islower() else None
    if target is None:
        module, _, kind = owner.rpartition(".")
        target = getattr(pytest.importorskip(module), kind)
    monkeypatch.setattr(target, name, failing_on_call(call)(getattr(target, name)))
    with pytest.raises(InjectedError):
        act(model, tmp_path)
    monkeypatch.undo()
    assert_same(before, state(model))


REFUSALS = {
    "merge nothing": (lambda: _off(with_two()), lambda m, d: merge_adapters(m)),
    "merge one that is not there": (with_two, lambda m, d: merge_adapters(m, "x")),
    "merge two heads": (with_two, lambda m, d: merge_adapters(m, ["a", "b"])),
    "merge twice": (merged, lambda m, d: merge_adapters(m, "b")),
    "unmerge what is not merged": (with_two, lambda m, d: unmerge_adapters(m)),
    "merge others for good": (merged, lambda m, d: merge_and_unload(m, "b")),
    "merge for good in another way": (
        with_two,
        lambda m, d: merge_and_unload(m, "b", quantized_base="requantize"),
    ),
    "two heads act": (with_two, lambda m, d: set_adapter(m, ["a", "b"])),
    "one that is not there acts": (with_two, lambda m, d: set_adapter(m, ["b", "x"])),
    "one acts while merged": (merged, lambda m, d: set_adapter(m, "b")),
    "add a name that is taken": (with_two, lambda m, d: add_adapter(m, LoraConfig(r=2), "a")),
    "add what matches nothing": (
        with_two,
        lambda m, d: add_adapter(m, LoraConfig(r=2, target_modules=["x"]), "c"),
    ),
    "load for another base": (with_two, lambda m, d: load_adapter(m, _other(d), "c")),
    "load what is not there": (with_two, lambda m, d: load_adapter(m, d / "x", "c")),
    "load several": (with_two, lambda m, d: load_adapters(m, _several(d))),
    "swap a larger rank": (with_two, lambda m, d: hotswap_adapter(m, saved(d, r=4), "b")),
    "combine two heads": (with_two, lambda m, d: combine_adapters(m, {"a": 1, "b": 1}, "c")),
    "delete one that acts": (with_two, lambda m, d: delete_adapter(m, "a")),
    "delete one that is not there": (with_two, lambda m, d: delete_adapter(m, "x")),
    "unload while merged": (merged, lambda m, d: unload(m)),
    "start from data without need": (
        with_two,
        lambda m, d: initialize_from_data(m, [batch(m)], "b"),
    ),
    **{
        f"{start}: batches that end early": (
            lambda start=start: with_data_start(start),
            lambda m, d: initialize_from_data(m, batches_that_end(m)),
        )
        for start in ("eva", "lora_ga")
    },
    "a block without adapters": (with_two, lambda m, d: _failing_block(disable_adapters(m))),
}


def _failing_block(block):
    with block:
        raise InjectedError


def _off(model):
    set_adapter(model, None)
    return model


def _other(folder):
    other = bert("BertForSequenceClassification", num_labels=5)
    add_adapter(other, LoraConfig(r=2))
    save_adapter(other, folder)
    return folder


def _several(folder):
    good, bad = bare(), bert("BertForSequenceClassification", num_labels=5)
    for model, name in ((good, "c"), (bad, "d")):
        add_adapter(model, LoraConfig(r=2), name)
        save_adapters(model, folder)
    return folder


@pytest.mark.parametrize(("make", "act"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal(make, act, tmp_path):
    model = make()
    before = state(model)
    with pytest.raises(Exception) as caught:
        act(model, tmp_path)
    assert (
        isinstance(caught.value, InjectedError) or type(caught.value).__module__ == "lorakit.errors"
    )
    assert_same(before, state(model))


def test_what_failed_works_afterwards(monkeypatch):
    model = with_two()
    expected = Adapter.from_model(model, "b")
    from lorakit.layers import LoraLinear

    monkeypatch.setattr(LoraLinear, "merge", failing_on_call(2)(LoraLinear.merge))
    with pytest.raises(InjectedError):
        merge_adapters(model, "b")
    monkeypatch.undo()
    merge_adapters(model, "b")
    unmerge_adapters(model)
    assert torch.equal(
        Adapter.from_model(model, "b").replaced["classifier.weight"],
        expected.replaced["classifier.weight"],
    )
