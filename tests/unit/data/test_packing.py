"""Packed texts train as the same texts one by one; a model that would mix them is refused."""

from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit import LoraConfig, add_adapter
from lorakit.data.packing import PackCollator, asks_to_pack, isolating_collator
from lorakit.errors import ConfigError
from tiny_models import VOCABULARY, WIDTH, gpt2, llama, randomize_
from tolerances import LOGITS_TOLERANCE, TOLERANCE, largest_error

TASK = "CAUSAL_LM"
# Gradients through two layers in float32, from sums over batches of other shapes.
THROUGH_A_MODEL = 1e-4
ROWS, FLAT = PackCollator(0), DataCollatorForLanguageModeling(0, padding_free=True)
LENGTHS = ((5, 3, 4), (6, 2))
TEXTS = [
    [torch.randint(3, 30, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in row]
    for row in LENGTHS
]


def packs(texts=TEXTS):
    return [
        {
            "input_ids": [*chain(*row)],
            # Of each text the second token does not count, as of a prompt.
            "labels": [*chain(*([ids[0], -100, *ids[2:]] for ids in row))],
            "seq_lengths": [len(ids) for ids in row],
        }
        for row in texts
    ]


def adapted(build, attention):
    model = build()
    model.set_attn_implementation(attention)
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    return randomize_(model)


def loss_and_gradients(model, batches):
    """The summed loss of batches over all that counts, and what it gives the adapter."""
    model.zero_grad()
    total = counted = 0
    for batch in batches:
        labels = batch["labels"]
        given = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**given, use_cache=False).logits
        total = total + torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        counted += int((labels[:, 1:] != -100).sum())
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return counted, total.detach(), gradients


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("collator", [ROWS, FLAT], ids=["rows", "flat"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_loss_and_gradients_are_those_of_the_texts_one_by_one(build, collator, attention):
    model = adapted(build, attention)
    plain = DataCollatorForLanguageModeling(0)
    singly = [plain(packs([[text]])) for text in chain(*TEXTS)]
    counted, loss, gradients = loss_and_gradients(model, [collator(packs())])
    expected = loss_and_gradients(model, singly)
    assert counted == expected[0] == sum(n - 2 for row in LENGTHS for n in row)
    assert largest_error(loss, expected[1]) <= TOLERANCE[torch.float32]
    for name, gradient in expected[2].items():
        error = largest_error(gradients[name], gradient)
        assert error < THROUGH_A_MODEL, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("collator", [ROWS, FLAT], ids=["rows", "flat"])
def test_the_first_text_does_not_reach_the_second(collator, attention):
    model = adapted(llama, attention)
    changed = [[[31] * 5, *TEXTS[0][1:]], TEXTS[1]]
    logits = []
    for texts in (TEXTS, changed):
        batch = collator(packs(texts))
        del batch["labels"]
        with torch.no_grad():
            logits.append(model(**batch, use_cache=False).logits.reshape(-1, VOCABULARY))
    assert torch.equal(logits[0][5:12], logits[1][5:12])
    assert not torch.equal(logits[0][:5], logits[1][:5])
    alone = model(torch.tensor([TEXTS[0][1]])).logits[0]
    assert largest_error(logits[0][5:8], alone) < LOGITS_TOLERANCE


def test_a_batch_of_packs_has_a_row_for_each():
    batch = ROWS(packs())
    assert batch["input_ids"].shape == (2, 12)
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 0, 1, 0, 0, 0, 0],
    ]
    assert batch["labels"][1].tolist()[6:] == [-100] * 6
    assert "attention_mask" not in batch
    one = {"input_ids": [3, 4], "labels": [3, 4]}
    plain = ROWS([one, {"input_ids": [3, 4, 5], "labels": [3, 4, 5]}])
    assert plain["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "position_ids" not in plain


@pytest.mark.parametrize(
    ("training", "asked"),
    [
        ({}, ""),
        ({"packing": True}, "packing"),
        ({"packing": False, "eval_packing": True}, "eval_packing"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing"),
        ({"packing": True, "packing_strategy": "wrapped"}, ""),
        ({"packing": True, "packing_strategy": "wrapped", "padding_free": True}, "padding_free"),
    ],
)
def test_which_argument_asks_for_packs(training, asked):
    assert asks_to_pack(training) == asked


def chosen(model):
    return isolating_collator(model, (ROWS, FLAT), [5, 6, 7], {"packing": True}, nullcontext())


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        init_std=0.3,
    )
    return OPTForCausalLM(config)


def falcon():
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    return FalconForCausalLM(FalconConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, **sizes))


def recurrent_gemma():
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    config = RecurrentGemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    return RecurrentGemmaForCausalLM(config)


@pytest.mark.parametrize("build", [opt, recurrent_gemma])
def test_a_model_that_mixes_packed_texts_is_refused(build):
    """Both take position ids; the mask does without, or a state goes on."""
    torch.manual_seed(0)
    model = build().train()
    with pytest.raises(ConfigError) as caught:
        chosen(model)
    said = str(caught.value)
    assert said.startswith(
        "Examples cannot be packed for this model: got training.packing=true, but "
        f"{type(model).__name__} with attention 'sdpa' lets packed texts see each other (the text "
        "before it changes a text's logits by "
    )
    assert said.endswith("%). Leave packing out.")
    assert model.training


def test_a_model_whose_mask_reads_positions_is_packed():
    torch.manual_seed(0)
    assert chosen(falcon().train()) is ROWS


@pytest.fixture
def attention():
    """Register an attention function for one test; it has no mask of transformers'."""

    def register(name, function):
        AttentionInterface.register(name, function)
        names.append(name)
        return name

    names = []
    yield register
    for name in names:
        del ALL_ATTENTION_FUNCTIONS._global_mapping[name]


def causal(module, query, key, value, attention_mask, allowed=None, **given):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    tokens = query.shape[2]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask = mask if allowed is None else mask & allowed
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    return out.transpose(1, 2).contiguous(), None


def test_an_attention_without_packing_is_refused(
    attention, prepare, tiny_llama_dir, text_jsonl, tmp_path
):
    made = prepare(TASK, tiny_llama_dir, text_jsonl, training={"packing": True}, max_length=64)
    made.model.set_attn_implementation(attention("mixing", causal))
    with pytest.raises(ConfigError, match="with attention 'mixing' lets packed texts see each"):
        made.trainer(tmp_path, packing=True)


def test_an_attention_for_flat_batches_gets_these(attention):
    """Flash attention tells texts apart in a batch of one row only."""

    def by_length(module, query, key, value, attention_mask, cu_seq_lens_q=None, **given):
        lengths = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
        blocks = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
        return causal(module, query, key, value, None, allowed=blocks)

    model = llama()
    assert chosen(model) is ROWS
    model.set_attn_implementation(attention("flat", by_length))
    assert chosen(model) is FLAT


def test_a_model_that_says_it_cannot_pack_is_quoted():
    model = llama()

    def forward(*args, position_ids=None, **given):
        raise ValueError("the kernel can't keep packed sequences apart.\nMore.")

    model.forward = forward
    with pytest.raises(ConfigError, match=r"\(the kernel can't keep packed sequences apart\)\. Le"):
        chosen(model)


def test_flat_batches_need_positions_too(prepare, tiny_bloom_dir, text_jsonl):
    with pytest.raises(ConfigError, match=r"got training\.padding_free=true, but BloomForCausalLM"):
        prepare(TASK, tiny_bloom_dir, text_jsonl, training={"padding_free": True})


@pytest.mark.parametrize(
    "packed",
    [
        {"packing": True},
        {"packing": True, "eval_packing": False},
        {"eval_packing": True},
        {"padding_free": True},
    ],
    ids=str,
)
def test_through_the_trainer_all_ways_give_the_loss_of_rows_by_themselves(
    prepare, tiny_llama_dir, text_jsonl, tmp_path, packed
):
    plain = prepare(TASK, tiny_llama_dir, text_jsonl)
    made = prepare(TASK, tiny_llama_dir, text_jsonl, training=packed, max_length=40)
    results = []
    for prepared, arguments in ((plain, {}), (made, packed)):
        torch.manual_seed(0)  # the adapter is drawn from here
        trainer = prepared.trainer(
            tmp_path,
            **arguments,
            num_train_epochs=1,
            per_device_train_batch_size=18,
            per_device_eval_batch_size=2,
        )
        evaluated = trainer.evaluate()
        trainer.train()
        row = next(row for row in trainer.state.log_history if "loss" in row)
        results.append([evaluated["eval_loss"], row["loss"], row["grad_norm"], row["num_tokens"]])
        is_packed = "seq_lengths" in prepared.encoded.train.column_names
        assert is_packed == bool(arguments.get("packing"))
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_packs_by_length_alone_are_said_to_mix(prepare, tiny_llama_dir, text_jsonl, tmp_path):
    wrapped = {"packing": True, "packing_strategy": "wrapped"}
    made = prepare(TASK, tiny_llama_dir, text_jsonl, training=wrapped, max_length=16)
    assert made.encoded.notes[-1] == (
        "Packed texts see each other: training.packing_strategy=wrapped."
    )
    trainer = made.trainer(tmp_path, **wrapped)
    assert not isinstance(trainer.data_collator, PackCollator)
