"""The model, called for rows with adapters, in a thread that takes short turns."""

import sys
import threading

import pytest
import torch
from transformers import DynamicCache, XLNetConfig, XLNetLMHeadModel

from fixtures.engines import tiny_llama, with_adapters
from lorakit import add_adapter, set_adapter
from lorakit.config import LoraConfig
from lorakit.errors import AdapterStateError, ConfigError
from lorakit.serving.engine import runner
from lorakit.serving.engine.runner import ModelRunner, cache_of, keys_values, short_turns
from tiny_models import bloom, t5
from tolerances import LOGITS_TOLERANCE, largest_error

IDS = torch.arange(10, 18).view(2, 4)
MASK = torch.ones_like(IDS)
POSITIONS = torch.arange(4).expand(2, 4)


def logits(runner, names):
    with torch.no_grad():
        return runner.forward(IDS, DynamicCache(), names, MASK, POSITIONS)


def test_each_row_has_its_adapter_until_others_are_chosen():
    model = with_adapters(tiny_llama())
    set_adapter(model, "lora")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits[:, -1]
    set_adapter(model, None)
    runner = ModelRunner(model)
    both = logits(runner, ["lora", "lora"])
    mixed = logits(runner, [None, "lora"])
    assert largest_error(both, expected) <= LOGITS_TOLERANCE
    assert largest_error(mixed[1], expected[1]) <= LOGITS_TOLERANCE
    assert largest_error(mixed[0], expected[0]) > 0.1
    with pytest.raises(AdapterStateError):
        add_adapter(model, LoraConfig(r=2), "new")
    runner.close()
    add_adapter(model, LoraConfig(r=2), "new")
    assert largest_error(logits(runner, ["lora", "new"])[0], expected[0]) <= LOGITS_TOLERANCE


def test_the_keys_and_values_of_one_token_show_the_layers():
    runner = ModelRunner(with_adapters(tiny_llama()))
    (keys, values), second = runner.one_token()
    assert keys.shape == values.shape == second[0].shape == (1, 1, 1, 8)
    runner.close()


def test_a_model_without_positions_and_logits_of_the_last_alone():
    runner = ModelRunner(bloom())
    assert logits(runner, [None, None]).shape == (2, 32)


def test_a_model_that_keeps_no_keys_is_refused():
    sizes = {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    runner = ModelRunner(XLNetLMHeadModel(XLNetConfig(**sizes)).eval())
    with pytest.raises(ConfigError, match="Cannot decode XLNetLMHeadModel row by row"):
        runner.one_token()


def test_a_cache_keeps_all_tokens():
    pairs = [(torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3)) for _ in range(2)]
    found = keys_values(cache_of(pairs))
    assert len(found) == 2
    for pair, (keys, values) in zip(pairs, found, strict=True):
        assert torch.equal(pair[0], keys) and torch.equal(pair[1], values)
    assert keys_values(cache_of([])) == []


def test_an_encoder_with_a_decoder_is_refused():
    with pytest.raises(ConfigError, match="Use a CAUSAL_LM base"):
        ModelRunner(t5())


# ---- shorter turns of threads ----


@pytest.fixture
def usual_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_turns_are_short_until_the_last_block_ends(usual_turns):
    inside, may_end = threading.Event(), threading.Event()

    def run():
        with short_turns():
            inside.set()
            assert may_end.wait(30)

    thread = threading.Thread(target=run)
    with short_turns():
        thread.start()
        assert inside.wait(30)
    assert sys.getswitchinterval() == pytest.approx(
        runner._TURN_S, abs=1e-6
    )  # the thread still runs
    may_end.set()
    thread.join(30)
    assert sys.getswitchinterval() == pytest.approx(0.005, abs=1e-6)


def test_an_error_ends_them_and_shorter_ones_stay(usual_turns):
    with pytest.raises(OSError), short_turns():
        raise OSError
    assert sys.getswitchinterval() == pytest.approx(0.005, abs=1e-6)
    sys.setswitchinterval(0.0001)
    shorter = sys.getswitchinterval()  # whole microseconds
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(shorter, abs=1e-6)
    assert sys.getswitchinterval() == pytest.approx(shorter, abs=1e-6)
