"""Laws that hold for any paths, shapes and configurations, on few drawn examples."""

import itertools
import re
import string

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    count_parameters,
    merge_adapters,
    unload,
    unmerge_adapters,
)
from lorakit.config import matching_pattern
from lorakit.injection.selection.targets import compact_targets, name_matches
from lorakit.ops import LowRankTerm, apply_keep_mask, keep_mask, low_rank_linear
from lorakit.ops.reference import low_rank_linear_reference
from tiny_models import assert_untouched, snapshot
from tolerances import TOLERANCE, largest_error

few = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

parts = st.sampled_from(["0", "1", "q", "v", "layers", "mlp", "a_b", "x"])
paths = st.lists(parts, min_size=1, max_size=4).map(".".join)


@few
@given(st.lists(paths, min_size=1, max_size=12, unique=True), st.data())
def test_compact_targets_select_exactly_what_was_selected(everything, data):
    selected = [path for path in everything if data.draw(st.booleans())]
    if not selected:
        return
    names = compact_targets(selected, everything)
    assert [path for path in everything if name_matches(names, path)] == selected


@few
@given(paths, paths)
def test_a_name_selects_whole_components_only(name, path):
    expected = path.split(".")[-len(name.split(".")) :] == name.split(".")
    assert name_matches([name], path) is expected


@few
@given(paths, paths)
def test_an_escaped_path_as_a_pattern_is_the_name(name, path):
    assert (matching_pattern([re.escape(name)], path) is not None) is name_matches([name], path)


@few
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([0.0, 0.2, 0.75]),
    st.integers(0, 2**62),
)
def test_the_op_is_its_reference(leading, inside, out, r, with_bias, p, seed):
    torch.manual_seed(seed % 1000)
    x = torch.randn(*leading, inside, dtype=torch.float64)
    W0, A, B = (torch.randn(s, dtype=torch.float64) for s in ((out, inside), (r, inside), (out, r)))
    bias = torch.randn(out, dtype=torch.float64) if with_bias else None
    seed_tensor = torch.tensor(seed)
    h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5, p, seed_tensor)])
    dropped = apply_keep_mask(x, p, seed_tensor) if p else x
    expected = low_rank_linear_reference(x, W0, bias, A, B, 0.5, dropped)
    assert largest_error(h, expected) <= TOLERANCE[torch.float64]


@few
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 2**62), st.floats(0, 0.99))
def test_a_mask_is_a_function_of_seed_and_position(small, large, seed, p):
    """A shorter activation gets the start of a longer one's mask."""
    small, large = sorted((small, large))
    seed_tensor, cpu = torch.tensor(seed), torch.device("cpu")
    long_mask = keep_mask((large,), p, seed_tensor, cpu)
    assert torch.equal(keep_mask((small,), p, seed_tensor, cpu), long_mask[:small])
    more = keep_mask((large,), p / 2, seed_tensor, cpu)
    assert (more | ~long_mask).all()  # what a higher probability keeps, a lower one keeps too


class Net(nn.Module):
    def __init__(self, sizes, bias):
        super().__init__()
        torch.manual_seed(0)
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairs)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


configs = st.builds(
    LoraConfig,
    r=st.integers(1, 3),
    lora_alpha=st.sampled_from([1, 3.5, 16]),
    bias=st.sampled_from(["none", "all", "lora_only"]),
    use_rslora=st.booleans(),
    target_modules=st.sampled_from([None, ("0",), r"layers\.[01]"]),
    rank_pattern=st.sampled_from([{}, {"0": 2}, {r"layers\.\d": 1}]),
    alpha_pattern=st.sampled_from([{}, {"0": 9}]),
    init_lora_weights=st.just(False),
)
networks = st.builds(Net, st.lists(st.integers(3, 6), min_size=3, max_size=4), st.booleans())


@few
@given(networks, configs)
def test_add_merge_unmerge_and_unload(net, config):
    x = torch.randn(4, net.layers[0].in_features)
    before, base = snapshot(net), net(x)
    injection = add_adapter(net, config)
    count = count_parameters(net)
    assert count.lora == sum(m.r * (m.in_features + m.out_features) for m in injection.matches)
    assert count.total == count.base + count.lora + count.replaced
    assert count.trainable == count.lora + count.replaced
    adapted, expected = snapshot(net), net(x)
    merge_adapters(net)
    assert torch.allclose(net(x), expected, atol=1e-5)
    unmerge_adapters(net)
    assert_untouched(net, adapted)
    unload(net)
    assert_untouched(net, before)
    assert torch.equal(net(x), base)


@few
@given(networks, configs)
def test_an_adapter_is_a_value(net, config):
    x = torch.randn(4, net.layers[0].in_features)
    add_adapter(net, config)
    value, expected = Adapter.from_model(net), net(x)
    for match in value.factors:
        A, B = value.factors[match]
        s = value.config.scaling_for(match)
        assert torch.allclose(value.delta_weight(match), s * B @ A, atol=1e-6)
    unload(net)
    add_adapter(net, value, "again")
    assert torch.equal(net(x), expected)
    assert Adapter.from_model(net, "again").config == value.config


names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)


@few
@given(names.filter(lambda n: n[0] != "-" and not hasattr(nn.ModuleDict(), n)))
def test_any_well_formed_name_names_an_adapter(name):
    net = Net([3, 3, 3], True)
    add_adapter(net, LoraConfig(r=1, bias="all", target_modules=["0"]), name)
    assert Adapter.from_model(net, name).factors
    unload(net)
