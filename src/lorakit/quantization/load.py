"""Loading a base in 4 or 8 bits, and quantizing one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from lorakit.config import QuantizationConfig
from lorakit.errors import QuantizationError, TargetError, first_few
from lorakit.injection.selection.heads import output_layers, task_heads
from lorakit.injection.selection.targets import name_matches, no_match_message
from lorakit.injection.state import base_modules, first_adapted
from lorakit.layers.bitsandbytes_storage import (
    BLOCK_SIZE,
    bits_of,
    forget_deserialization,
    keep_odd_layouts,
)
from lorakit.layers.frozen_linear import restore_plain_layers_
from lorakit.layers.replaced import plain_class_of
from lorakit.libraries.foreign_code import build_from_config, load_pretrained
from lorakit.quantization.devices import compute_dtype, default_device, require_bitsandbytes
from lorakit.quantization.low_memory import low_memory


def load_quantized(
    auto_class: Any,
    name: str,
    config: QuantizationConfig,
    *,
    model_config: Any,
    trained_in_full: Sequence[str] = (),
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint with its linear layers in 4 or 8 bits.

    Each weight is quantized as soon as it is read, so at most one of them is in memory in its
    original dtype.

    Args:
        auto_class: A transformers class with `from_pretrained`.
        name: Hub id or directory.
        config: How to quantize.
        model_config: The configuration of the model at `name`.
        trained_in_full: Names of modules that are not quantized, as an adapter trains them.
        device: Device of the model; None takes the accelerator if there is one, else the CPU.
        trust_remote_code: Whether code that the model includes may run.
        options: Passed on to `from_pretrained`; `dtype` "auto" becomes the compute dtype.

    Returns: The model, and transformers' loading information.

    Raises:
        QuantizationError: bitsandbytes is missing, the device lacks the compute dtype, the
            checkpoint is quantized already, a layer cannot be cut into blocks, or there is none
            to quantize.
        TargetError: `config.skip_modules` names no module.
    """
    require_bitsandbytes()
    refuse_quantized(model_config, name)
    device = device or default_device()
    dtype = compute_dtype(config, device)
    if options.get("dtype") in (None, "auto"):
        options["dtype"] = dtype
    trusted = {"trust_remote_code": trust_remote_code}
    skeleton = build_from_config(auto_class, model_config, **trusted)
    skipped = skipped_modules(skeleton, config, trained_in_full)
    require_blocks(skeleton, config, skipped)
    load = partial(
        load_pretrained,
        auto_class,
        name,
        config=model_config,
        output_loading_info=True,
        device_map={"": device},
        **trusted,
        **options,
    )
    with low_memory():
        with torch.random.fork_rng():  # the second time, the same random weights are drawn
            model, info = load(quantization_config=bitsandbytes_config(config, dtype, skipped))
        missing = {key.rpartition(".")[0] for key in info["missing_keys"]}
        fresh = [
            path for path, module in base_modules(model) if path in missing and bits_of(module)
        ]
        if fresh:  # random values, dense as they are trained in full
            skipped = [*skipped, *fresh]
            model, info = load(quantization_config=bitsandbytes_config(config, dtype, skipped))
    keep_odd_layouts(model.modules())
    return model, info


def is_quantized(model_config: Any) -> bool:
    """Return whether a checkpoint's configuration says that it is quantized."""
    return getattr(model_config, "quantization_config", None) is not None


def load_settings(model_config: Any) -> QuantizationConfig:
    """Return how bitsandbytes has quantized a checkpoint, as the settings of a recipe.

    Raises:
        QuantizationError: Something else has quantized it.
    """
    values = _require_bitsandbytes_checkpoint(model_config, "the checkpoint")
    skipped = tuple(values.get("llm_int8_skip_modules") or ()) or None
    if values.get("load_in_8bit"):
        return QuantizationConfig(bits=8, skip_modules=skipped)
    return QuantizationConfig(
        bits=4,
        quant_type=values.get("bnb_4bit_quant_type", "fp4"),
        double_quant=values.get("bnb_4bit_use_double_quant", False),
        compute_dtype=str(values.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch."),
        skip_modules=skipped,
    )


def load_as_quantized(
    auto_class: Any,
    name: str,
    model_config: Any,
    trained_in_full: Sequence[str],
    device: torch.device | None,
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint that bitsandbytes has quantized already, as it is.

    Modules that an adapter trains in full stay dense if the checkpoint lacks them.

    Args:
        auto_class: A transformers class with `from_pretrained`.
        name: Hub id or directory.
        model_config: The configuration of the model at `name`.
        trained_in_full: Names of modules an adapter trains in full.
        device: Device of the model; None takes the accelerator if there is one, else the CPU.
        options: Passed on to `from_pretrained`, including `trust_remote_code`.

    Returns: The model, and transformers' loading information.

    Raises:
        QuantizationError: It was quantized by something else, or bitsandbytes is missing.
    """
    values = _require_bitsandbytes_checkpoint(model_config, f"'{name}'")
    require_bitsandbytes()
    heads = skipped_modules(
        build_from_config(auto_class, model_config, trust_remote_code=options["trust_remote_code"]),
        QuantizationConfig(skip_modules=()),
        trained_in_full,
    )
    known = [*(values.get("llm_int8_skip_modules") or ["lm_head"])]
    values["llm_int8_skip_modules"] = list(dict.fromkeys([*known, *heads]))
    model_config.quantization_config = values
    model, info = load_pretrained(
        auto_class,
        name,
        config=model_config,
        output_loading_info=True,
        device_map={"": device or default_device()},
        **options,
    )
    forget_deserialization(model)
    keep_odd_layouts(model.modules())
    return model, info


def _require_bitsandbytes_checkpoint(model_config: Any, name: str) -> dict[str, Any]:
    how = model_config.quantization_config
    values: dict[str, Any] = how if isinstance(how, dict) else how.to_dict()
    if not (values.get("load_in_4bit") or values.get("load_in_8bit")):
        raise QuantizationError(
            f"Cannot train on {name}: the checkpoint is quantized by {describe_quantization(how)}, "
            "expected bitsandbytes or dense weights. Name the checkpoint it was made of, and set "
            "`quantization` for it."
        )
    return values


def quantize_model(
    model: nn.Module,
    config: QuantizationConfig,
    device: torch.device | None = None,
) -> nn.Module:
    """Quantize the linear layers of a model in memory, in place.

    The layers are replaced by bitsandbytes'; everything else stays as it is. A transformers model
    can be saved with `save_pretrained` afterwards and is loaded as it is.

    Args:
        model: Any torch module without adapters.
        config: How to quantize.
        device: Device of the quantized layers; None leaves each on its device.

    Returns: The same model.

    Raises:
        QuantizationError: The model is quantized already or carries adapters, bitsandbytes is
            missing, the device lacks the compute dtype, a layer cannot be cut into blocks, or
            there is none to quantize.
        TargetError: `config.skip_modules` names no module.
    """
    require_bitsandbytes()
    target = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = compute_dtype(config, target)
    adapted = first_adapted(model)
    if adapted is not None:
        raise QuantizationError(
            f"Cannot quantize this {type(model).__name__}: {adapted} carries adapters, expected a "
            "model without. Quantize the base first."
        )
    if any(bits_of(module) for module in model.modules()):
        raise QuantizationError(
            f"Cannot quantize this {type(model).__name__}: its linear layers are quantized "
            "already, expected dense weights. Use it as it is."
        )
    skipped = skipped_modules(model, config, ())
    require_blocks(model, config, skipped)
    how = bitsandbytes_config(config, dtype, skipped)
    _replace_layers(model, how, device)
    if hasattr(model, "save_pretrained"):
        _mark(model, how)
    return model


def refuse_quantized(model_config: Any, name: str) -> None:
    """Refuse to quantize a checkpoint that is quantized already.

    Raises:
        QuantizationError: It is; says how.
    """
    if is_quantized(model_config):
        how = describe_quantization(model_config.quantization_config)
        raise QuantizationError(
            f"Cannot quantize '{name}': the checkpoint is quantized already ({how}), expected "
            "dense weights. Leave `quantization` out to use it as it is."
        )


def describe_quantization(how: Any) -> str:
    """Return a short description of how a checkpoint is quantized, by its config.json."""
    values: Any = how if isinstance(how, dict) else how.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
    if values.get("load_in_4bit"):
        return f"{method}, 4 bits, {values.get('bnb_4bit_quant_type')}"
    return f"{method}, 8 bits" if values.get("load_in_8bit") else method


def skipped_modules(
    model: nn.Module, config: QuantizationConfig, trained_in_full: Iterable[str]
) -> list[str]:
    """Return the paths of linear layers, or of modules that contain them, that stay dense.

    Raises:
        TargetError: A name in `config.skip_modules` matches no module.
    """
    paths = [path for path, _ in base_modules(model) if path]
    always = set(task_heads(model))
    # T5 casts the input of such a layer to the dtype of its weight, even if that is packed bytes.
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    always |= {path for path in paths if name_matches((*trained_in_full, *kept), path)}
    if config.skip_modules is None:
        outputs = output_layers(model)
        always |= {path for path, module in base_modules(model) if id(module) in outputs}
    else:
        idle = [n for n in config.skip_modules if not any(name_matches([n], p) for p in paths)]
        if idle:
            linear = [path for path, _ in linear_layers(model)]
            raise TargetError(no_match_message("quantization.skip_modules", idle, linear))
        always |= {path for path in paths if name_matches(config.skip_modules, path)}
    return [path for path in paths if path in always]


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, layer) of the layers to quantize: linear ones, and GPT-2's transposed ones."""
    for path, module in model.named_modules():
        if path and (plain_class_of(module) is nn.Linear or isinstance(module, Conv1D)):
            yield path, module


def require_blocks(model: nn.Module, config: QuantizationConfig, skipped: list[str]) -> None:
    """Check that there are layers to quantize, and that each can be cut into blocks.

    Raises:
        QuantizationError: There are none, or names the layers that cannot.
    """
    layers = [(p, one) for p, one in linear_layers(model) if should_convert_module(p, skipped)]
    if not layers:
        dense = f"; {first_few(skipped)} stay dense" if skipped else ""
        raise QuantizationError(
            f"Cannot quantize this {type(model).__name__}: it has no linear layer to quantize"
            f"{dense}. Leave quantization out, or put a single layer into an nn.Sequential."
        )
    if config.bits != 4:
        return
    ragged = [
        f"{path} {tuple(module.weight.shape)}"  # type: ignore[arg-type,union-attr]  # a quantizable layer
        for path, module in layers
        if module.weight.numel() % BLOCK_SIZE  # type: ignore[operator,union-attr]  # a quantizable layer
    ]
    if ragged:
        raise QuantizationError(
            f"Cannot quantize {first_few(ragged)} to 4 bits: the size is not a "
            f"multiple of the {BLOCK_SIZE} values of a block. Name these layers in "
            "quantization.skip_modules, or set quantization.bits=8."
        )


def _replace_layers(model: nn.Module, how: Any, device: torch.device | None) -> None:
    """Replace plain layers by bitsandbytes' layers with quantized weights."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    restore_plain_layers_(model)
    plain = dict(linear_layers(model))
    replace_with_bnb_linear(model, how.llm_int8_skip_modules, how)
    with low_memory():
        for path, source in plain.items():
            made: Any = model.get_submodule(path)
            if made is source:
                continue
            stored: Tensor = source.weight.detach()  # type: ignore[operator,union-attr,assignment]  # a quantizable layer
            weight = (stored.t() if isinstance(source, Conv1D) else stored).contiguous()
            if how.load_in_8bit:  # quantized when it leaves the CPU
                weight = weight.cpu()
            settings = vars(made.weight)
            parameter = type(made.weight)(weight, requires_grad=False, **settings)
            made.weight = parameter.to(device or stored.device)
            made.bias = source.bias
            made.train(source.training)
    keep_odd_layouts(model.modules())


def bitsandbytes_config(
    config: QuantizationConfig, dtype: torch.dtype, skipped: Sequence[str]
) -> Any:
    """Return the quantization config for transformers."""
    from transformers import BitsAndBytesConfig

    if config.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[*skipped])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant_type,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*skipped],
    )


def _mark(model: Any, how: Any) -> None:
    """Mark a model as quantized for transformers, as `from_pretrained` does."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(how, pre_quantized=False)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    model.quantization_method = how.quant_method
    model.is_quantized = True
