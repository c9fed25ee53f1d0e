"""The models that the papers count: their configurations, without weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from lorakit.config import TaskType
from lorakit.models.pretrained import auto_model

GPT3_Q_V = ("q_proj", "v_proj")
GPT3_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def gpt3(layers: int = 96, width: int = 12288) -> PretrainedConfig:
    """Return GPT-3's sizes on OPT's code, which has q, k, v and o as separate layers.

    Source: Brown et al. 2020, arXiv:2005.14165, table 2.1.
    """
    return OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=96,
        vocab_size=50257,
        max_position_embeddings=2048,
    )


def llama(hidden: int, intermediate: int, layers: int, heads: int) -> PretrainedConfig:
    """Return a configuration of the first LLaMA.

    Source: Touvron et al. 2023, arXiv:2302.13971, table 2.
    """
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


LLAMAS = {
    "LLaMA 7B": (4096, 11008, 32, 32),
    "LLaMA 13B": (5120, 13824, 40, 40),
    "LLaMA 33B": (6656, 17920, 60, 52),
    "LLaMA 65B": (8192, 22016, 80, 64),
}
"""Width, width inside the MLP, layers and heads."""


def distilbert() -> PretrainedConfig:
    """Return DistilBERT's sizes, which are the defaults of its class."""
    return DistilBertConfig(num_labels=2)


def roberta(layers: int, width: int, heads: int) -> PretrainedConfig:
    """Return a configuration of RoBERTa."""
    return RobertaConfig(
        vocab_size=50265,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=514,
        type_vocab_size=1,
    )


def deberta_xxl() -> PretrainedConfig:
    """Return the configuration of DeBERTa XXL."""
    return DebertaV2Config(
        vocab_size=128100,
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=24,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        conv_kernel_size=3,
    )


@contextmanager
def config_folder(config: PretrainedConfig) -> Iterator[Path]:
    """Yield a directory with nothing but the configuration."""
    with tempfile.TemporaryDirectory(prefix="lorakit-claims-") as name:
        config.save_pretrained(name)
        yield Path(name)


def skeleton(config: PretrainedConfig, task: TaskType) -> PreTrainedModel:
    """Return the model of a configuration on the meta device, without weights."""
    with torch.device("meta"):
        return auto_model(task).from_config(config)
