"""Families whose configurations or inputs need special values."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

Inputs = dict[str, Any]

_NEEDS = {
    "the library timm": "fast_vlm gemma3n perception_lm timm_wrapper",
    "the library natten": "dinat",
    "the library detectron2": "layoutlmv2",
    "a codec with its own size": (
        "apertus1p5 blt chameleon emu3 dia evolla janus vibevoice vibevoice_asr "
        "kyutai_speech_to_text"
    ),
    "a convolutional encoder with its own size": "align got_ocr2 pp_chart2table pp_formulanet",
    "sizes that depend on each other": (
        "bit cohere_compass cohere_compass_text cosmos3_edge cvt deepseek_ocr2 deepseek_vl_hybrid "
        "diffusion_gemma ernie4_5_vl_moe fun_asr_nano granite4_vision granite_speech5_ctc hgnet_v2 "
        "hunyuan_vl levit mobilevit mobilevitv2 molmo2 moonshine_streaming muse_spark "
        "nemo_speechlm nemotron_h_omni qwen2_5_omni_thinker textnet inkling2 inkling_mm_model "
        "gemma4_assistant gemma4_unified_assistant qwen3_omni_moe_thinker videoprism "
        "dots3_note dots3_note_text hy_v4_vl qwen4_exp qwen4_exp_text"
    ),
    "a gradient at the input of its reversible layers": "reformer",
    "two models": "musicgen musicgen_melody speech-encoder-decoder",
    "images among the tokens": (
        "idefics instructblip instructblipvideo kosmos-2 kosmos-2.5 pi0 blip-2 "
        "voxtral_realtime pix2struct"
    ),
}
LEFT_OUT = {family: reason for reason, names in _NEEDS.items() for family in names.split()}
"""Families that are not made here, with what they need."""

MODEL_CLASSES = {
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
}
"""Other classes than the auto classes say first."""

_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}


def _rope(*sections: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": rope}


SPECIAL: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96},
    },
    "deepseek_v2": _EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "donut-swin": {"image_size": 64, "window_size": 2, "embed_dim": 16},
    "dots1": _EXPERTS | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "focalnet": {"embed_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm46v": {"text_config": _rope(2, 3, 3)},
    "glm4v": {"text_config": _rope(2, 3, 3)},
    "glm4v_moe": {"text_config": _rope(1, 1, 2)},
    "glm_ocr": {"text_config": _rope(2, 3, 3)},
    "glmga": {"text_config": _rope(2, 3, 3)},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hiera": {"embed_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16},
    "led": {"attention_window": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "llama4": {
        "vision_config": {
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        }
    },
    "longcat_flash": {"zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 16,
        "max_xpath_subs_unit_embeddings": 16,
        "tag_pad_id": 15,
        "subs_pad_id": 15,
        "max_depth": 4,
    },
    "ministral": {"head_dim": 16},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl": {"text_config": _rope(2, 3, 3)},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 64,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "qwen2_5_vl": {"text_config": _rope(2, 3, 3)},
    "qwen2_vl": {"text_config": _rope(2, 3, 3)},
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "shieldgemma2": {"yes_token_index": 3, "no_token_index": 4},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "swin": {"image_size": 64, "window_size": 2, "embed_dim": 16},
    "swinv2": {"window_size": 4, "embed_dim": 16},
    "voxtral": {"text_config": {"num_key_value_heads": 2, "head_dim": 16}},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "xmod": {"default_language": "en_XX"},
}
"""What the configuration's class is given besides the tiny sizes."""

CONVOLUTIONAL = frozenset(
    {
        "efficientnet",
        "mobilenet_v1",
        "mobilenet_v2",
        "poolformer",
        "pp_lcnet",
        "regnet",
        "resnet",
        "squeezebert",
    }
)
"""Families without linear layers besides the head: their convolutions are adapted."""

WITHOUT_REENTRANT = frozenset({"blip", "pegasus_x", "wavlm"})
"""Families whose reentrant checkpointing fails or never ends, with or without an adapter: BLIP adds
to its embeddings in place; layers of the others read what an earlier layer made, and their backward
runs the whole graph again."""


def _spectrogram(model: PreTrainedModel, generator: torch.Generator) -> Inputs:
    config = model.config
    shape = 2, config.max_length, config.num_mel_bins
    return {"input_values": torch.randn(shape, generator=generator)}


def _one_channel(model: PreTrainedModel, generator: torch.Generator) -> Inputs:
    return {"input_values": torch.randn(2, 1, 2000, generator=generator)}


def _patches(model: PreTrainedModel, generator: torch.Generator) -> Inputs:
    vision = model.config.vision_config
    width = vision.num_channels * vision.patch_size**2
    return {
        "pixel_values": torch.randn(2, 16, width, generator=generator),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    }


def _boxes(model: PreTrainedModel, generator: torch.Generator) -> Inputs:
    return {
        "input_ids": torch.randint(3, 64, (2, 12), generator=generator),
        "bbox": torch.rand(2, 12, 4, generator=generator),
        "decoder_input_ids": torch.randint(3, 64, (2, 7), generator=generator),
    }


INPUTS: dict[str, Callable[[PreTrainedModel, torch.Generator], Inputs]] = {
    "audio-spectrogram-transformer": _spectrogram,
    "omniasr_ctc": _one_channel,
    "siglip2": _patches,
    "udop": _boxes,
}
"""Inputs of models that read something unusual."""
