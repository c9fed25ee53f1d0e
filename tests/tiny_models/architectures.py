"""Models of transformers' architectures, with the sizes that tests need."""

import torch
import transformers

WIDTH = 16
VOCABULARY = 32

# Larger than the usual 0.02, so that a small adapter moves the logits by more than rounding.
_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
_SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HIDDEN = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = _COMMON | _HIDDEN | {"intermediate_size": 32, "max_position_embeddings": 16}
_LLAMA = _COMMON | _HIDDEN | {"num_key_value_heads": 1, "max_position_embeddings": 32}
_EXPERTS = _LLAMA | {"intermediate_size": 24, "num_experts_per_tok": 2}
_GPT = _COMMON | _SPECIAL_TOKENS | {"n_layer": 2, "n_head": 2}

_SIZES = {
    "DistilBert": _COMMON
    | {"dim": WIDTH, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 16},
    "Bert": _BERT,
    "Roberta": _BERT | {"max_position_embeddings": 20, "pad_token_id": 1},
    "Llama": _LLAMA | _SPECIAL_TOKENS | {"intermediate_size": 32},
    "Mistral": _LLAMA | _SPECIAL_TOKENS | {"intermediate_size": 32, "sliding_window": 8},
    "Gemma3Text": _LLAMA
    | _SPECIAL_TOKENS
    | {"intermediate_size": 32, "head_dim": 8, "sliding_window": 8}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "GPT2": _GPT | {"n_positions": 16, "n_embd": WIDTH},
    "Bloom": _GPT | {"hidden_size": WIDTH},
    "GPTJ": _GPT | {"n_positions": 32, "n_embd": WIDTH, "rotary_dim": 4, "resid_pdrop": 0.0},
    "Falcon": _COMMON | _SPECIAL_TOKENS | _HIDDEN,
    "DebertaV2": _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "T5": {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2}
    | {"num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    "Mixtral": _EXPERTS | {"num_local_experts": 4},
    "Qwen3Moe": _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 20, "head_dim": 8},
    "GptOss": _EXPERTS
    | {"num_local_experts": 3, "head_dim": 8, "sliding_window": 8, "pad_token_id": 0},
    "ViT": _HIDDEN
    | {"intermediate_size": 32, "image_size": 8, "patch_size": 4, "num_channels": 3}
    | {"num_labels": 3, "initializer_range": 0.3},
}


def tiny(architecture, model_class, **options):
    """Return a seeded model in eval mode; `options` replace sizes of its configuration."""
    config = getattr(transformers, f"{architecture}Config")(**(_SIZES[architecture] | options))
    torch.manual_seed(0)
    return getattr(transformers, model_class)(config).eval()


def distilbert(model_class="DistilBertForSequenceClassification", **options):
    return tiny("DistilBert", model_class, **options)


def bert(model_class="BertForTokenClassification", **options):
    return tiny("Bert", model_class, **options)


def masked_bert():
    return bert("BertForMaskedLM")


def roberta(model_class="RobertaForSequenceClassification", **options):
    return tiny("Roberta", model_class, **options)


def llama(model_class="LlamaForCausalLM", **options):
    return tiny("Llama", model_class, **options)


def gpt2(model_class="GPT2LMHeadModel", **options):
    return tiny("GPT2", model_class, **options)


def bloom(model_class="BloomForCausalLM", **options):
    return tiny("Bloom", model_class, **options)


def t5(model_class="T5ForConditionalGeneration", **options):
    return tiny("T5", model_class, **options)


def mixtral(**options):
    return tiny("Mixtral", "MixtralForCausalLM", **options)


def qwen3_moe(**options):
    return tiny("Qwen3Moe", "Qwen3MoeForCausalLM", **options)


def vit():
    return tiny("ViT", "ViTForImageClassification")


def gpt_oss(**options):
    """A model whose experts are stored (experts, in, out), with biases and an interleaved gate."""
    model = tiny("GptOss", "GptOssForCausalLM", **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model
