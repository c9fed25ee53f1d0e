"""Adapter files for llama.cpp, written with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.formats.portable import portable_adapter
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    ConfigError,
    OutputExistsError,
    first_few,
)
from lorakit.files.atomic import replacing_file
from lorakit.files.checkpoint_weights import class_name_of

GgufDtype = Literal["float32", "float16"]

_ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "GemmaForCausalLM": "GEMMA",
    "Gemma2ForCausalLM": "GEMMA2",
    "Gemma3ForCausalLM": "GEMMA3",
    "Phi3ForCausalLM": "PHI3",
    "GPT2LMHeadModel": "GPT2",
}
"""Models whose linear layers llama.cpp's converter only renames, except those of `_PERMUTED`."""

_PERMUTED = ("LlamaForCausalLM", "MistralForCausalLM")
"""Models for which llama.cpp applies the rotary embedding to pairs of neighbouring rows."""

_TIED = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel")
"""Models whose output head is tied to the embedding unless their config.json says otherwise."""

_TOKEN_EMBEDDING, _OUTPUT = "token_embd", "output"


@torch.no_grad()
def save_gguf(
    adapter: Adapter,
    path: str | Path,
    base_config: Mapping[str, Any],
    *,
    dtype: GgufDtype = "float32",
) -> Path:
    """Write an adapter as a GGUF file for `llama-cli --lora`.

    Scalings are folded into lora_b, so that `--lora-scaled` 1 is the adapter as trained. For
    Llama and Mistral the rows of lora_b of q and k are permuted like those of the base.

    Args:
        adapter: The adapter; it is not modified.
        path: The file to write.
        base_config: The base's config.json: architectures, numbers of layers and heads.
        dtype: Dtype of the tensors in the file.

    Returns: The path written.

    Raises:
        ConfigError: The package `gguf` is not installed, or the model is not supported; names the
            supported ones.
        AdapterMismatchError: A module has no name in GGUF, or its rows do not fit the heads.
        AdapterFileError: The adapter has features that GGUF cannot express; see
            `portable_adapter`.
        OutputExistsError: `path` is a directory.

    Source: llama.cpp, convert_lora_to_gguf.py and src/llama-adapter.cpp.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputExistsError(
            f"Cannot write a GGUF file to {path}: it is a directory, expected the name of a file. "
            f"Name {path / 'adapter.gguf'}, say."
        )
    plain = portable_adapter(adapter, keep_embeddings=True)
    architecture = _architecture(base_config)
    tensors = {
        name: tensor.to("cpu", getattr(torch, dtype)).contiguous()
        for name, tensor in gguf_tensors(plain, base_config).items()
    }
    too_large = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if too_large:
        raise AdapterFileError(
            f"Cannot write {path}: {first_few(too_large)} have values too large for {dtype}, "
            "expected finite ones. Write float32."
        )
    gguf = _gguf()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as partial:
        arch_name = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[_ARCHITECTURES[architecture]]]
        writer = gguf.GGUFWriter(partial, arch_name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, plain.config.lora_alpha)
        writer.add_name(path.stem)
        kinds = gguf.LlamaFileType
        writer.add_file_type(kinds.ALL_F32 if dtype == "float32" else kinds.MOSTLY_F16)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def gguf_tensors(adapter: Adapter, base_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return an adapter's tensors under GGUF's names: `blk.0.attn_q.weight.lora_a`.

    Args:
        adapter: An adapter of one rank and scaling 1, as `portable_adapter` returns it.
        base_config: The base's config.json.

    Returns: lora_a (r, in) and lora_b (out, r) by name; for the token embedding lora_a is
        (vocabulary, r), as llama.cpp looks rows up in it.

    Raises:
        AdapterMismatchError: As in `save_gguf`.
    """
    gguf = _gguf()
    architecture = _architecture(base_config)
    layers = _count(base_config, "num_hidden_layers", "n_layer")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[_ARCHITECTURES[architecture]], layers)
    setting = base_config.get("tie_word_embeddings")
    is_tied = architecture in _TIED if setting is None else setting
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    for path, (A, B) in adapter.factors.items():
        name = names.get_name(path)
        if name is None or (name == _OUTPUT and is_tied):
            unknown.append(path)
            continue
        is_rotated = architecture in _PERMUTED and path.endswith(("q_proj", "k_proj"))
        tensors[f"{name}.weight.lora_a"] = A.T if name == _TOKEN_EMBEDDING else A
        tensors[f"{name}.weight.lora_b"] = (
            _permute_rows(B, _heads(path, base_config), path) if is_rotated else B
        )
    if unknown:
        raise AdapterMismatchError(
            f"No name in GGUF for {first_few(unknown)}: expected modules that "
            f"{architecture} has there (an output head that is tied to the embedding is not). "
            "Leave them out, or merge the adapter with `lorakit merge` and convert the model."
        )
    return tensors


def _permute_rows(B: Tensor, heads: int, path: str) -> Tensor:
    """Return the rows of q or k in llama.cpp's order.

    Transformers rotates row i of a head with row i + d/2; llama.cpp rotates neighbouring rows. So
    the two halves of each head are interleaved.

    Args:
        B: (out, r).
        heads: Number of heads that the rows belong to.
        path: The module's path for error messages.
    """
    if B.shape[0] % (2 * heads):
        raise AdapterMismatchError(
            f"{path} has {B.shape[0]} rows, expected a multiple of twice the {heads} heads of the "
            "base's config.json. Name the base the adapter was made for."
        )
    halves = B.reshape(heads, 2, B.shape[0] // heads // 2, B.shape[1])
    return halves.transpose(1, 2).reshape(B.shape)


def _heads(path: str, base_config: Mapping[str, Any]) -> int:
    heads = _count(base_config, "num_attention_heads")
    return base_config.get("num_key_value_heads") or heads if path.endswith("k_proj") else heads


def _count(base_config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        if isinstance(base_config.get(key), int):
            return base_config[key]
    raise ConfigError(
        f"No {keys[0]} in the base's config.json, expected a whole number. Name the directory of "
        "the base model."
    )


def _architecture(base_config: Mapping[str, Any]) -> str:
    found = class_name_of(base_config)
    if found not in _ARCHITECTURES:
        raise ConfigError(
            f"Cannot write a GGUF adapter for the base model: got architectures={found!r}, "
            f"expected one of {', '.join(_ARCHITECTURES)}. Merge the adapter with `lorakit merge` "
            "and convert the model with llama.cpp."
        )
    return found


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "Cannot write a GGUF file: the package gguf is not installed. Install it with "
            "`pip install 'lorakit[gguf]'`."
        ) from None
    return gguf
