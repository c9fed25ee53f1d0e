import torch

from lorakit.serving.pooled.batch_rows import pad_rows, running_rows
from tiny_models import llama
from tiny_models.adapted import with_adapter


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
