"""Families whose configurations or inputs need special values."""

from collections.abc import Callable
from typing import Any

LEFT_OUT: dict[str, str] = {
    family: f"needs the library {library}"
    for library, families in {
        "timm": ("fast_vlm", "gemma3n", "perception_lm", "timm_wrapper"),
        "natten": ("dinat",),
        "detectron2": ("layoutlmv2",),
    }.items()
    for family in families
}
"""Families that cannot be made here, with the reason."""

MODEL_CLASSES: dict[str, str] = {
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
    "emu3": "Emu3ForConditionalGeneration",
    "reformer": "ReformerForMaskedLM",
}
"""Other classes than the auto classes say first."""

_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}
_ROUTED = _EXPERTS | {"n_group": 1, "topk_group": 1}

SPECIAL: dict[str, dict[str, Any]] = {
    "deepseek_v2": _ROUTED | {"first_k_dense_replace": 1},
    "dots1": _EXPERTS | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "ministral": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "zero_shot": {},
    "longcat_flash": {"zero_expert_num": 2, "moe_topk": 2},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 64,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "reformer": {
        "axial_pos_shape": (4, 16),
        "axial_pos_embds_dim": (32, 32),
        "is_decoder": False,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 2,
    },
}
SPECIAL.pop("zero_shot")
"""What the configuration's class is given besides the tiny sizes."""

INPUTS: dict[str, Callable[..., dict[str, Any]]] = {}
"""Inputs of models that read something unusual."""
