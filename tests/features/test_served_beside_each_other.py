"""Which adapters one server can hold beside each other, in one batch, and which it refuses."""

import pytest
import torch

from fixtures.served import alone, leased, outputs, refusal, serving
from lorakit import save_adapter
from lorakit.errors import AdapterMismatchError
from tiny_models import bert, distilbert, llama, t5
from tiny_models.adapted import save_adapter_of
from tiny_models.quantized import quantized
from tiny_models.trained_tokens import with_tokens
from tolerances import LOGITS_TOLERANCE, largest_error


def four_bits():
    return quantized(llama(hidden_size=64, intermediate_size=64))


def eight_bits():
    return quantized(llama(hidden_size=64, intermediate_size=64), bits=8)


TOKENS = [{"trainable_token_indices": [4, 9]}, {"trainable_token_indices": [9, 5, 3]}, {}]
BESIDE = {
    "ranks": (llama, [{"r": 1}, {"r": 8}, {"rank_pattern": {"q_proj": 3}}]),
    "dora": (llama, [{}, {"use_dora": True}, {"use_dora": True, "r": 3}]),
    "rslora": (llama, [{"use_rslora": True}, {"lora_alpha": 1}]),
    "biases": (distilbert, [{"bias": "all"}, {"bias": "lora_only"}, {}]),
    "heads": (distilbert, [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}, {}]),
    "heads of tokens": (bert, [{"task_type": "TOKEN_CLS"}, {"bias": "all"}]),
    "head of a language model": (llama, [{"modules_to_save": ["lm_head"]}, {}]),
    "embeddings": (llama, [{"target_modules": ["embed_tokens", "lm_head"]}, {}]),
    "embeddings in full": (llama, [{"modules_to_save": ["embed_tokens"]}, {"use_dora": True}]),
    "tokens": (llama, TOKENS),
    "encoder and decoder": (t5, [{"target_modules": ["q", "v"], "bias": "all"}, {}]),
    "4 bits": (four_bits, [{}, {"r": 3}, {"use_dora": True}]),
    "8 bits": (eight_bits, [{}, {"r": 3}]),
}


@pytest.mark.parametrize("case", BESIDE.values(), ids=BESIDE)
def test_what_one_server_holds_beside_each_other(case, tmp_path):
    build, configs = case
    for number, config in enumerate(configs):
        save_adapter_of(tmp_path / f"n{number}", build(), seed=number, **config)
    with serving(tmp_path, model=build()) as store:
        leases = [leased(store, f"n{number}") for number in range(len(configs))]
        order = [*range(len(configs)), 0]
        rows = outputs(store, None, *(leases[number] for number in order))
        base = alone(store, tmp_path / "n0", build, is_off=True)
        assert largest_error(rows[:1], base) < LOGITS_TOLERANCE
        for row, number in enumerate(order, start=1):
            expected = alone(store, tmp_path / f"n{number}", build)
            assert largest_error(rows[row : row + 1], expected) < LOGITS_TOLERANCE
            assert largest_error(rows[:1], expected) > 0.01
        for lease in leases:
            lease.release()


def test_a_quantized_base_answers_alike_with_adapters_and_without(tmp_path):
    save_adapter_of(tmp_path / "a", four_bits())
    with serving(tmp_path, model=four_bits()) as store:
        before = outputs(store, None)
        with leased(store, "a") as lease:
            beside = outputs(store, None, lease)[:1]
        assert largest_error(beside, before) < LOGITS_TOLERANCE
        store.unload("a")
        assert torch.equal(outputs(store, None), before)


def test_heads_with_another_number_of_labels_are_refused_by_name(tmp_path):
    for labels in (2, 5):
        model = distilbert(num_labels=labels)
        save_adapter_of(tmp_path / f"labels-{labels}", model, task_type="SEQ_CLS")
    with serving(tmp_path, model=distilbert()) as store:
        assert leased(store, "labels-2").name == "labels-2"
        error = refusal(store, "labels-5")
        assert isinstance(error, AdapterMismatchError)
        assert "'labels-5'" in str(error) and "has shape (5" in str(error)


def test_more_tokens_than_the_base_are_refused_by_name(tmp_path):
    larger = llama()
    larger.resize_token_embeddings(40)
    save_adapter(with_tokens(llama, (5, 36), model=larger), tmp_path / "words")
    with serving(tmp_path) as store:
        assert "'words' on this base: it was trained with a vocabulary of 37" in str(
            refusal(store, "words")
        )
