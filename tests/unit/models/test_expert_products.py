"""Bases whose experts have widths that torch's grouped product refuses."""

import pytest
import torch

from lorakit.config import TaskType
from lorakit.models.pretrained import auto_model, load_model
from tiny_models import gpt_oss, qwen3_moe, tokens


@pytest.mark.parametrize(
    ("build", "width", "implementation"),
    [(qwen3_moe, 20, "eager"), (qwen3_moe, 24, "grouped_mm"), (gpt_oss, 20, "eager")],
    ids=["qwen3_moe, odd", "qwen3_moe, even", "gpt_oss, odd"],
)
def test_rows_that_are_no_multiple_of_16_bytes_are_computed_one_by_one(
    build, width, implementation, tmp_path
):
    key = "moe_intermediate_size" if build is qwen3_moe else "intermediate_size"
    build(**{key: width}, max_position_embeddings=32).save_pretrained(tmp_path)
    model = load_model(
        auto_model(TaskType.CAUSAL_LM), str(tmp_path), seed=0, has_head=False, dtype="bfloat16"
    )
    assert model.config._experts_implementation == implementation
    ids = tokens(length=18)["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_float32_has_the_grouped_product_in_these_widths(tmp_path):
    qwen3_moe().save_pretrained(tmp_path)
    model = load_model(auto_model(TaskType.CAUSAL_LM), str(tmp_path), seed=0, has_head=False)
    assert model.config._experts_implementation == "grouped_mm"
