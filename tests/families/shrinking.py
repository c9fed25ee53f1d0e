"""Configurations of transformers with their sizes made tiny, by the names that sizes have."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)

WIDTH, HEADS, HEAD_WIDTH, LAYERS, VOCABULARY, POSITIONS = 64, 4, 16, 2, 64, 64

_SIZES: tuple[tuple[str, Any], ...] = (
    (r".*dropout.*|.*drop_rate.*|.*drop_path.*|.*layer_?drop.*|.*_pdrop|.*jitter.*|drop_prob", 0.0),
    (r"mask_time_prob|mask_feature_prob", 0.0),
    (
        r"(text_|src_|tgt_|character_|t2u_|audio_|image_|entity_|shape_|pronunciation_|unpadded_)?vocab_?(ulary)?_size|vocab_size_per_layer_input|num_hash_buckets|vocabulary_size",
        VOCABULARY,
    ),
    (r"(pad|mask|unk|sep|cls)_token_id", 0),
    (r"(bos|decoder_start|forced_bos)_token_id", 1),
    (r"(eos|forced_eos)_token_id", 2),
    (
        r"(max|n)_position(_embedding)?s|max_sequence_length|n_ctx|seq_length|max_seq_len|"
        r"max_target_positions|max_(de|en)coder_position_embeddings|max_encode_length|model_max_length",
        POSITIONS,
    ),
    (r"max_source_positions", 16),
    (
        r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|depth|"
        r"num_(en|de)coder_blocks_total|vision_layers|n_(en|de)coder_layers?|(en|de)coder_num_layers|"
        r"num_hidden_layers_(en|de)coder|speech_encoder_layers|t2u_(en|de)coder_layers|"
        r"num_hidden_groups|num_attention_layers",
        LAYERS,
    ),
    (r"num_nextn_predict_layers|num_mtp_layers", 0),
    (
        r"(num_)?(linear_)?num_key_value_heads|num_kv_heads|swa_num_key_value_heads|num_query_groups|multi_query_group_num|n_kv_heads?",
        2,
    ),
    (
        r"num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|num_(en|de)coder_attention_heads|"
        r"linear_num_(key|value)_heads|attention_heads|(en|de)coder_num_heads|num_(en|de)coder_heads|speech_encoder_attention_heads|"
        r"(en|de)coder_num_attention_heads|t2u_(en|de)coder_attention_heads|mamba_num_heads|mamba_n_heads|mamba_heads|index_n_heads|linear_num_heads|swa_num_attention_heads|n_mamba_heads|num_(self|cross)_attention_heads",
        HEADS,
    ),
    (
        r"(attention_|linear_key_|linear_value_|global_)?head_dim|d_kv|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|"
        r"kv_channels|linear_(key|value)_head_dim|attention_head_size|mamba_head_dim|mamba_d_head|index_head_dim|linear_head_dim|swa_head_dim|d_head",
        HEAD_WIDTH,
    ),
    (r"[qk]v?_lora_rank|q_lora_rank|o_lora_rank", 16),
    (
        r"(text_)?hidden_size|d_model|n_embd|dim|(en|de)coder_hidden_size|embed_dim|emb_dim|embedding_size|"
        r"hidden_dim|projection_dim|word_embed_proj_dim|embedding_dim|attention_hidden_size|"
        r"shared_latent_dim|out_hidden_size|output_hidden_size|projector_hidden_size|projection_hidden_size|entity_emb_size|model_dim|lm_hidden_size|cross_attention_hidden_size",
        WIDTH,
    ),
    (
        r"intermediate_size|.*_intermediate_size.*|d_ff|.*ffn_dim|(expert_)?ffn_hidden_size|d_inner|ffn_size|"
        r"ffn_embed_dim|inner_dim|dff|n_inner|mlp_dim|.*dim_feedforward|feed_forward_size|hidden_dim_ff|"
        r"intermediate_dim|(en|de)coder_intermediate_size|dim_ff",
        96,
    ),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|num_routed_experts", 4),
    (r"num_experts_per_(tok|token)|moe_top_?k|moe_k|top_k_experts|num_selected_experts", 2),
    (r"n_group|topk_group|num_expert_groups?|num_limited_groups", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (r"state_size|ssm_state_size|mamba_d_state", 8),
    (r"n_groups|mamba_n_groups|mamba_num_groups", 1),
    (r"chunk_size|mamba_chunk_size", 8),
    (r"conv_kernel_size", 3),
    (r"conv_kernel|mamba_d_conv", 4),
    (r"downsample_hidden_size|nemo_conv_channels", 16),
    (r"layer_scale_init_value|layer_scale_initial_scale|layerscale_value", 1.0),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"lru_width", WIDTH),
    (r"image_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins|feature_size", 16),
    (r"conv_bias", True),
    (r"num_conv_pos_embeddings", 4),
    (r"num_conv_pos_embedding_groups", 2),
    (r"sliding_window|attention_window_size|local_attention|window_size", 8),
    (r"num_labels", 5),
    (r"rotary_dim", 8),
    (r"initializer_range|init_std", 0.1),
)
_WIDTHS = re.compile(r".*(dim|size|channel|width|filter)s?(_list)?")
_DEPTHS = re.compile(r".*depths?|num_blocks|stage_numb_of_layers|stage_num_blocks")
_IMAGES = re.compile(
    r".*(image|patch|crop|kernel|window|resolution|stride|pool|input|grid|bin|latent)_?(size|dim)?s?.*"
)
_LAYER_LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")


def shrunk(config: PreTrainedConfig, **special: Any) -> dict[str, Any]:
    """Return what to make the configuration's class with for a tiny model of its kind.

    Args:
        config: As its class makes it by default.
        special: Values that are taken as they are; dictionaries are for the configurations inside.
    """
    values: dict[str, Any] = {}
    defaults = dict(type(config).default_config_fields())
    for key, default in defaults.items():
        inner = _value(config, key)
        if isinstance(inner, PreTrainedConfig):
            changes = special.get(key, {})
            if isinstance(changes, dict):
                values[key] = shrunk(inner, **changes)
                values[key].setdefault("model_type", inner.model_type)
        elif default is not None and not key.startswith("_"):
            small = _small(key, default)
            if small is not default:
                values[key] = small
    values |= {
        key: value
        for key, value in special.items()
        if key not in values or not isinstance(values[key], dict)
    }
    if (
        defaults.get("num_key_value_heads") == defaults.get("num_attention_heads")
        and "num_key_value_heads" in values
    ):
        values.setdefault("num_key_value_heads", HEADS)
        if "num_key_value_heads" not in special:
            values["num_key_value_heads"] = HEADS
    for key in ("rope_parameters", "rope_scaling"):
        rope = defaults.get(key)
        if isinstance(rope, dict) and "mrope_section" in rope and key not in special:
            values[key] = rope | {"mrope_section": [2, 3, 3]}
    return _with_layers(config, values, special)


def _value(config: PreTrainedConfig, key: str) -> Any:
    """Return a value of a configuration; None for one that differs between its layers."""
    try:
        return getattr(config, key, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


def _small(key: str, default: Any) -> Any:
    if isinstance(default, list | tuple) and default and all(type(one) is int for one in default):
        return type(default)(_small_list(key, default))
    if isinstance(default, bool) or not isinstance(default, int | float):
        return default
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, key):
            if isinstance(size, float):
                return size
            return type(default)(min(size, default)) if not key.endswith("_token_id") else size
    return default


def _small_list(key: str, default: Sequence[int]) -> Sequence[int]:
    """Shrink a list with a value for each stage, and keep their ratios."""
    least = min(default)
    if key == "image_size":
        return [min(32, one) for one in default]
    if _DEPTHS.fullmatch(key):
        return [1] * len(default)
    if key == "num_heads" or key.endswith("attention_heads"):
        return [one // least if one % least == 0 else one for one in default]
    if _WIDTHS.fullmatch(key) and not _IMAGES.fullmatch(key) and least > 16:
        return [16 * one // least for one in default]
    return default


def _with_layers(
    config: PreTrainedConfig, values: dict[str, Any], special: dict[str, Any]
) -> dict[str, Any]:
    """Keep one layer of each kind where layers are of several."""
    for key in _LAYER_LISTS:
        kinds = _value(config, key)
        name = (type(config).attribute_map or {}).get(key, key)
        if any(isinstance(getattr(type(config), one, None), property) for one in (key, name)):
            continue
        if not isinstance(kinds, list | tuple) or {key, "num_hidden_layers"} & special.keys():
            continue
        if "num_hidden_layers" not in values or not all(isinstance(kind, str) for kind in kinds):
            continue
        distinct = list(dict.fromkeys(kinds))
        if len(distinct) > 1 or key in values:
            values[key] = distinct + distinct[-1:] * (LAYERS - len(distinct))
            values["num_hidden_layers"] = len(values[key])
    return values
