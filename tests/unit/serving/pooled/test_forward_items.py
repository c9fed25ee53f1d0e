import pytest
import torch

from lorakit import set_adapter
from lorakit.serving.pooled.forward_items import ForwardItem, pad_rows, run_forward, running_rows
from tiny_models import bert, distilbert, llama, t5
from tiny_models.adapted import with_adapter

ROWS = [[5, 6, 7, 8], [9, 10]]


def columns(ids):
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def items(wants, adapters=("a", None)):
    return [
        ForwardItem(columns(ids), adapter, wants)
        for ids, adapter in zip(ROWS, adapters, strict=True)
    ]


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaForTokenClassification"])
def test_logits_are_those_of_each_row_alone(name):
    torch.manual_seed(0)
    model = with_adapter(llama(name, num_labels=3).eval(), "a")
    model.config.pad_token_id = 0
    made = run_forward(model, items("logits"))
    for row, ids, adapter in zip(made, ROWS, ("a", None), strict=True):
        set_adapter(model, adapter)
        with torch.no_grad():
            alone = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [llama, bert, distilbert, t5])
def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_one(build):
    torch.manual_seed(0)
    model = build().eval()
    options = {"target_modules": ["q", "v"]} if build is t5 else {}
    with_adapter(model, "a", **options)
    made = run_forward(model, items("vector"))
    for vector, ids, adapter in zip(made, ROWS, ("a", None), strict=True):
        set_adapter(model, adapter)
        body = model.get_encoder() if build is t5 else model.base_model
        with torch.no_grad():
            hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=-1)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)
        assert vector.norm().item() == pytest.approx(1, abs=1e-5)


def test_items_share_a_batch_if_they_want_the_same_of_the_same_columns():
    first, second = items("logits")
    assert first.batch_key == second.batch_key
    assert (first.tokens, second.tokens) == (4, 2)
    assert first.batch_key != items("vector")[0].batch_key
    typed = ForwardItem({**columns([1]), "token_type_ids": [0]}, None, "logits")
    assert first.batch_key != typed.batch_key


def test_rows_are_padded_on_the_right_with_the_models_token():
    model = llama()
    model.config.pad_token_id = 7
    made = pad_rows(
        model,
        [
            {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "token_type_ids": [0, 1, 1]},
            {"input_ids": [4], "attention_mask": [1], "token_type_ids": [1]},
        ],
    )
    assert made["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert made["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]


def test_each_row_has_its_adapter_or_none():
    model = llama().eval()
    ids = torch.tensor([[1, 2, 3]] * 2)
    with running_rows(model, [None, None]):
        plain = model(ids).logits
    with_adapter(model, "german")
    with running_rows(model, ["german", None]):
        made = model(ids).logits
    assert not made.requires_grad
    torch.testing.assert_close(made[1], plain[1])
    assert not torch.allclose(made[0], plain[0])
