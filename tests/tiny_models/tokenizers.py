"""Tokenizers of the few words that the tests' data is made of."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from fixtures.data import WORDS

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template with generation markers: the assistant's words and its end token count."""


def _sentences() -> list[str]:
    return [" ".join(WORDS[i::7]) for i in range(7)] + [f" {word}" for word in WORDS] + WORDS


def byte_bpe(chat: bool = False, pad_token: str | None = "<pad>"):
    """Byte-level BPE as in GPT-2 and Llama 3, with <s>, </s> and, for chat, role tokens."""
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
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|end|>" if chat else "</s>",
        pad_token=pad_token,
        **({"chat_template": CHAT_TEMPLATE} if chat else {}),
    )


def wordpiece(has_types: bool):
    """BERT's tokenizer on the words of the fixtures, with single letters as pieces."""
    letters = sorted({letter for word in WORDS for letter in word.lower()} | set("0123456789.,?!:"))
    words = dict.fromkeys(word.lower() for word in WORDS if not word.startswith("A"))
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


def one_piece_per_word():
    """One piece per word, "</s>" at the end of each text, as T5 has it."""

    pieces = ["<pad>", "</s>", "<unk>", *dict.fromkeys(f"▁{word}" for word in [*WORDS, ":", "."])]
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )
