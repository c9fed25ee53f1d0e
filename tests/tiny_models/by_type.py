"""Tiny models of transformers' families by their type, with sizes made small by their names."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "projection_dim", "hidden_dim"), 16),
    **dict.fromkeys(("out_hidden_size", "output_dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "mlp_dim"), 24),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 12),
    "expert_ffn_hidden_size": 12,
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(
        ("num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_topk", "top_k"), 2
    ),
    **dict.fromkeys(
        ("linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim"), 2
    ),
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim"), 4),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "chunk_size"), 4),
    **dict.fromkeys(("mamba_chunk_size", "time_step_rank", "index_n_heads", "index_topk"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_groups"), 1),
    **dict.fromkeys(("num_dense_layers", "moe_layer_start_index", "mamba_n_groups"), 1),
    "index_head_dim": 8,
    "mamba_d_ssm": 32,
    "expand": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 64),
    **dict.fromkeys(("image_size", "patch_size"), 8),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "zero_expert_num": 1},
}
_LATENT = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": 8}
"""Sizes of attentions whose keys and values come from one latent vector."""

_ROPE = {"rope_type": "default", "rope_theta": 1e4}

_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "sarvam_mla"), _LATENT),
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "glm4v_moe": {"head_dim": 8, "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}},
    "mamba2": {"head_dim": 8},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_moe": {"rope_parameters": _ROPE, "head_dim": 4},
}
_SPECIAL["deepseek_v2"] = {**_LATENT, "num_experts_per_tok": 2, "n_routed_experts": 4}

_TASKS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM")


def small_config(model_type: str) -> PreTrainedConfig:
    """Return a type's configuration with small sizes."""
    config = CONFIG_MAPPING[model_type]()
    _shrink(config)
    text = config.get_text_config()
    for name, value in _SPECIAL.get(model_type, {}).items():
        setattr(text, name, value)
    return config


def _shrink(config: PreTrainedConfig) -> None:
    for name, size in _SIZES.items():
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, size)
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            _shrink(part)


def class_of(model_type: str) -> type[PreTrainedModel] | None:
    """Return the class of a type's language model, or None where there is none."""
    for task in _TASKS:
        name = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").get(model_type)
        if name is not None:
            return getattr(transformers, name if isinstance(name, str) else name[0])
    return None


def small_model(model_type: str) -> PreTrainedModel:
    """Return a type's language model in eval mode, with the same weights always."""
    torch.manual_seed(0)
    kind = class_of(model_type)
    assert kind is not None
    model = kind(small_config(model_type)).eval()
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        # Some classes leave their parameters as they lie in memory, or at zero.
        for parameter in module._parameters.values():
            if (
                parameter is not None
                and parameter.ndim > 1
                and not isinstance(module, nn.Embedding)
            ):
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    """Return the logits of some tokens."""
    return model(input_ids=torch.arange(3, 13)[None]).logits
