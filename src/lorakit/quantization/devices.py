"""The dtypes that a device supports for a quantized base."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

import torch

from lorakit.config import QuantizationConfig
from lorakit.errors import ConfigError, QuantizationError, first_line
from lorakit.libraries.extras import install_hint

OLDEST_BITSANDBYTES = (0, 50)


def require_bitsandbytes() -> None:
    """Require a bitsandbytes that is recent enough.

    Raises:
        QuantizationError: It is missing, too old, or cannot be imported.
    """
    wanted = ".".join(map(str, OLDEST_BITSANDBYTES))
    install = install_hint("bitsandbytes")
    try:
        found = version("bitsandbytes")
    except PackageNotFoundError:
        raise QuantizationError(
            f"`quantization` needs bitsandbytes, which is not installed. {install}"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST_BITSANDBYTES:
        raise QuantizationError(
            f"`quantization` needs bitsandbytes {wanted} or newer: got {found}. {install}"
        )
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise QuantizationError(
            f"bitsandbytes {found} cannot be imported ({reason}). {install}"
        ) from error


def has_dtype(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device has instructions to multiply matrices of a dtype."""
    if dtype == torch.float32:
        return True
    if device.type == "cpu":
        kind = "bf16" if dtype == torch.bfloat16 else "fp16"
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")())
    if device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def compute_dtype(config: QuantizationConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of products with the base.

    Raises:
        QuantizationError: The configuration names a dtype that the device lacks.
    """
    if config.compute_dtype == "auto":
        return torch.bfloat16 if has_dtype(torch.bfloat16, device) else torch.float32
    dtype: torch.dtype = getattr(torch, config.compute_dtype)
    if not has_dtype(dtype, device):
        raise QuantizationError(
            f"quantization.compute_dtype: got {config.compute_dtype}, for which this "
            f"{device.type.upper()} has no instructions; a step would take many times as long. "
            "Set quantization.compute_dtype=float32, or auto for the best one of the device."
        )
    return dtype


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def find_device(name: str | torch.device | None) -> torch.device:
    """Return the device of a name; None is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: torch does not know it, or cannot use it here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The device {str(name)!r} cannot be used: {first_line(error)}. Name one that torch "
            "has on this machine, such as cpu."
        ) from None
    return device
