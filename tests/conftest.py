"""Tiny models, tokenizers and data files, made on the spot: seeded, offline, few weights.

Every `tiny_*_dir` is a directory that `from_pretrained` loads (weights, config, tokenizer) and
that a recipe can name. Every data fixture is the path of a small file whose rule a tiny model can
learn.
"""

import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Makes the tables and model builders in tests/ importable: `from tiny_models import llama`.
sys.path.insert(0, str(Path(__file__).parent))

_CACHE = tempfile.mkdtemp(prefix="lorakit-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from fixtures.runs import done, recipe, stop_after  # noqa: E402, F401
from fixtures.tasks import jsonl, prepare, recipe_of  # noqa: E402, F401

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template with generation markers: the assistant's words and its end token count."""

_TEXT = (
    "a good bad great awful film story and the was of grass sky sun snow is green blue yellow "
    "white what colour tell me question answer Anna Bob Oslo Rome lives in works at Acme visits "
    "today red cat dog bird saw on hill one two three four copy first write do not like very much"
)
_WORDS = _TEXT.split()
_COLOURS = {"grass": "green", "sky": "blue", "sun": "yellow", "snow": "white"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Draw the same numbers in a test whatever ran before it."""
    import torch

    torch.manual_seed(0)


def _save(directory: Path, model, tokenizer) -> str:
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def _sentences() -> list[str]:
    return [" ".join(_WORDS[i::7]) for i in range(7)] + [f" {word}" for word in _WORDS] + _WORDS


def _bpe_tokenizer(chat: bool):
    """Byte-level BPE as in GPT-2 and Llama 3, with <s>, </s> and, for chat, role tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    special += ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"] if chat else []
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_sentences(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|end|>" if chat else "</s>",
        pad_token="<pad>" if chat else None,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _wordpiece_tokenizer(has_types: bool):
    """BERT's tokenizer on the words of the fixtures, with single letters as pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(
        {letter for word in _WORDS for letter in word.lower()} | set("0123456789.,?!:")
    )
    words = dict.fromkeys(word.lower() for word in _WORDS if not word.startswith("A"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [f"##{letter}" for letter in letters] + [word for word in words if len(word) > 1]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * has_types,
    )


def _t5_tokenizer():
    """One piece per word, "</s>" at the end of each text, as T5 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *dict.fromkeys(f"▁{word}" for word in [*_WORDS, ":", "."])]
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory) -> str:
    """A Llama causal LM (2 layers, width 32, 128 positions) with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = _bpe_tokenizer(chat=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(tmp_path_factory.mktemp("tiny-llama"), LlamaForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory) -> str:
    """A GPT-2 causal LM (Conv1D layers, tied head, 64 positions), without a padding token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = _bpe_tokenizer(chat=False)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(tmp_path_factory.mktemp("tiny-gpt2"), GPT2LMHeadModel(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_bloom_dir(tmp_path_factory) -> str:
    """A BLOOM causal LM (fused query_key_value, ALiBi positions, tied head)."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    tokenizer = _bpe_tokenizer(chat=False)
    tokenizer.pad_token = "<pad>"
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(tmp_path_factory.mktemp("tiny-bloom"), BloomForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_distilbert_dir(tmp_path_factory) -> str:
    """A DistilBERT masked LM (2 layers, width 32, 64 positions): the base of classifiers."""
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    torch.manual_seed(0)
    tokenizer = _wordpiece_tokenizer(has_types=False)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(
        tmp_path_factory.mktemp("tiny-distilbert"), DistilBertForMaskedLM(config), tokenizer
    )


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory) -> str:
    """A BERT masked LM (2 layers, width 32, 64 positions): the base of taggers."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    tokenizer = _wordpiece_tokenizer(has_types=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(tmp_path_factory.mktemp("tiny-bert"), BertForMaskedLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_t5_dir(tmp_path_factory) -> str:
    """A T5 (2 + 2 layers, width 32) with one piece per word."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = _t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(tmp_path_factory.mktemp("tiny-t5"), T5ForConditionalGeneration(config), tokenizer)


def _jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """The folder all data fixtures lie in."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def cls_csv(data_dir) -> str:
    """48 rows of text,label: "positive" where the text has good or great, else "negative"."""
    rows = ["text,label"]
    for i in range(48):
        word, label = [("good", "positive"), ("bad", "negative")][i % 2]
        word = {"good": "great", "bad": "awful"}[word] if i % 4 > 1 else word
        noun = ["film", "story", "cat", "dog"][i % 4]
        rows.append(f"the {noun} was {word} {_WORDS[i % 20]},{label}")
    path = data_dir / "classes.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def ner_jsonl(data_dir) -> str:
    """32 rows of tokens and IOB tags; Anna and Bob are persons, Oslo and Rome places."""
    rows = []
    for i in range(32):
        person, place = ["Anna", "Bob"][i % 2], ["Oslo", "Rome"][i // 2 % 2]
        verb = ["lives in", "works in", "visits", "saw"][i % 4].split()
        rows.append(
            {
                "tokens": [person, *verb, place, "today"],
                "tags": ["B-PER", *["O"] * len(verb), "B-LOC", "O"],
            }
        )
    return _jsonl(data_dir / "entities.jsonl", rows)


@pytest.fixture(scope="session")
def text_jsonl(data_dir) -> str:
    """24 rows of plain text for language modelling."""
    rows = []
    for i in range(24):
        thing = list(_COLOURS)[i % 4]
        rows.append({"text": f"the {thing} is {_COLOURS[thing]}"})
    return _jsonl(data_dir / "text.jsonl", rows)


@pytest.fixture(scope="session")
def prompt_jsonl(data_dir) -> str:
    """24 rows of prompt and completion: what colour is the grass? green."""
    rows = []
    for i in range(24):
        thing = list(_COLOURS)[i % 4]
        rows.append({"prompt": f"what colour is the {thing}?", "completion": f" {_COLOURS[thing]}"})
    return _jsonl(data_dir / "prompts.jsonl", rows)


@pytest.fixture(scope="session")
def chat_jsonl(data_dir) -> str:
    """24 conversations of one question and one answer; every third has a system message."""
    rows = []
    for i in range(24):
        thing = list(_COLOURS)[i % 4]
        messages = [
            {"role": "user", "content": f"what colour is the {thing}?"},
            {"role": "assistant", "content": _COLOURS[thing]},
        ]
        if i % 3 == 0:
            messages.insert(0, {"role": "system", "content": "answer"})
        rows.append({"messages": messages})
    return _jsonl(data_dir / "chat.jsonl", rows)


@pytest.fixture(scope="session")
def alpaca_jsonl(data_dir) -> str:
    """24 rows of instruction, input (half of them empty) and output."""
    rows = []
    for i in range(24):
        thing = list(_COLOURS)[i % 4]
        row = {"instruction": f"tell me the colour of {thing}", "input": "", "output": ""}
        if i % 2:
            row |= {"instruction": "tell me the colour", "input": thing}
        rows.append(row | {"output": _COLOURS[thing]})
    return _jsonl(data_dir / "alpaca.jsonl", rows)


@pytest.fixture(scope="session")
def summary_parquet(data_dir) -> str:
    """32 rows of source and target: the target is the animal the source tells of."""
    from datasets import Dataset

    rows = []
    for i in range(32):
        animal, colour = ["cat", "dog", "bird"][i % 3], ["red", "blue", "white", "green"][i % 4]
        rows.append({"source": f"the {colour} {animal} on the hill", "target": f"a {animal}"})
    path = data_dir / "summaries.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)
