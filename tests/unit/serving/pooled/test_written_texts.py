from dataclasses import replace

import torch

from lorakit import set_adapter
from lorakit.serving.pooled.written_texts import WrittenItem, run_written
from lorakit.serving.requests import Sampling
from tiny_models import t5
from tiny_models.adapted import with_adapter

ROWS = [[5, 6, 7, 8], [9, 10]]


def model_with_adapter():
    torch.manual_seed(0)
    return with_adapter(t5().eval(), "a", target_modules=["q", "v"])


def item(ids, adapter=None, **sampling):
    options = {"max_tokens": 5, "temperature": 0.0, "stop_token_ids": frozenset({1})} | sampling
    columns = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return WrittenItem(columns, adapter, Sampling(**options))


def test_each_answer_is_that_of_its_text_and_adapter_alone():
    model = model_with_adapter()
    made = run_written(model, [item(ROWS[0], "a"), item(ROWS[1], max_tokens=3)])
    for written, ids, adapter, tokens in zip(made, ROWS, ("a", None), (5, 3), strict=True):
        set_adapter(model, adapter)
        with torch.no_grad():
            alone = model.generate(torch.tensor([ids]), max_new_tokens=tokens, eos_token_id=1)
        expected = alone[0, 1:].tolist()
        is_ended = 1 in expected
        assert list(written.token_ids) == (expected[: expected.index(1)] if is_ended else expected)
        assert written.reason == ("stop" if is_ended else "length")


def test_the_likeliest_answer_is_searched_with_the_beams_of_the_base():
    model = model_with_adapter()
    items = [item(ROWS[0], "a", max_tokens=8), item(ROWS[1], max_tokens=6)]
    greedy = run_written(model, items)
    of_adapter = run_written(model, [replace(one, num_beams=3) for one in items])
    model.generation_config.num_beams = 3
    made = run_written(model, items)
    assert of_adapter == made
    assert made != greedy
    for written, ids, adapter, tokens in zip(made, ROWS, ("a", None), (8, 6), strict=True):
        set_adapter(model, adapter)
        with torch.no_grad():
            alone = model.generate(torch.tensor([ids]), max_new_tokens=tokens, eos_token_id=1)
        expected = [*alone[0, 1:].tolist(), 1]
        assert list(written.token_ids) == expected[: expected.index(1)]


def test_at_a_tiny_temperature_the_likeliest_tokens_are_written():
    model = model_with_adapter()
    (drawn,) = run_written(model, [item(ROWS[0], temperature=1e-40)])
    assert [drawn] == run_written(model, [item(ROWS[0])])


def test_an_answer_ends_at_a_stop_token():
    model = model_with_adapter()
    (whole,) = run_written(model, [item(ROWS[0])])
    end = whole.token_ids[2]
    (cut,) = run_written(model, [item(ROWS[0], stop_token_ids=frozenset({1, end}))])
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(end)]
    assert cut.reason == "stop"


def test_a_seed_repeats_an_answer_and_disturbs_no_other_random_number():
    model = model_with_adapter()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    made = [run_written(model, [item(ROWS[0], temperature=1.0, seed=s)])[0] for s in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_an_answer_that_nobody_waits_for_ends():
    model = model_with_adapter()
    left = item(ROWS[0], max_tokens=50, stop_token_ids=frozenset({-1}))
    left.is_cancelled.set()
    (written,) = run_written(model, [left])
    assert len(written.token_ids) <= 1


def test_sampled_answers_have_a_batch_for_themselves():
    assert item(ROWS[0]).batch_key == item(ROWS[1]).batch_key
    assert item(ROWS[0], temperature=1.0).batch_key != item(ROWS[0], temperature=1.0).batch_key
    assert item(ROWS[0]).batch_key != item(ROWS[0], stop_token_ids=frozenset({2})).batch_key
    assert item(ROWS[0]).tokens == 9
