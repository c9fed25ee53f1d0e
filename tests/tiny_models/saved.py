"""Directories that `from_pretrained` loads: weights, config and a tokenizer of the tests' words."""

from pathlib import Path

from tiny_models.architectures import bert, bloom, distilbert, gpt2, llama, t5
from tiny_models.tokenizers import byte_bpe, one_piece_per_word, wordpiece

_BERT = {"max_position_embeddings": 64, "initializer_range": 0.2}
_HIDDEN = {"hidden_size": 32, "num_attention_heads": 4}


def _llama(tokenizer):
    sizes = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
    return llama(**_HIDDEN, **sizes, **_special_tokens(tokenizer))


def _gpt2(tokenizer):
    return gpt2(n_embd=32, n_head=4, n_positions=64, **_special_tokens(tokenizer))


def _bloom(tokenizer):
    return bloom(hidden_size=32, n_head=4, **_special_tokens(tokenizer))


def _distilbert(tokenizer):
    sizes = {"dim": 32, "hidden_dim": 64, "n_heads": 4, "pad_token_id": tokenizer.pad_token_id}
    return distilbert("DistilBertForMaskedLM", vocab_size=len(tokenizer), **sizes, **_BERT)


def _bert(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 64}
    return bert("BertForMaskedLM", **_HIDDEN, **sizes, **_BERT)


def _t5(tokenizer):
    return t5(vocab_size=len(tokenizer), d_model=32, d_ff=64, num_heads=4)


def _special_tokens(tokenizer):
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


_KINDS = {
    "llama": (_llama, lambda: byte_bpe(chat=True)),
    "gpt2": (_gpt2, lambda: byte_bpe(pad_token=None)),
    "bloom": (_bloom, byte_bpe),
    "distilbert": (_distilbert, lambda: wordpiece(has_types=False)),
    "bert": (_bert, lambda: wordpiece(has_types=True)),
    "t5": (_t5, one_piece_per_word),
}


def save_tiny(name: str, directory: Path) -> str:
    """Write a model of 2 layers of width 32 and its tokenizer; return the directory."""
    build, make_tokenizer = _KINDS[name]
    tokenizer = make_tokenizer()
    build(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
