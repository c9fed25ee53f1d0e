"""What a device can do, and which bitsandbytes there is."""

import sys

import pytest
import torch

from lorakit import QuantizationConfig
from lorakit.errors import ConfigError, QuantizationError
from lorakit.quantization import devices
from lorakit.quantization.devices import (
    compute_dtype,
    default_device,
    find_device,
    require_bitsandbytes,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_the_best_the_device_has(monkeypatch, has, expected):
    monkeypatch.setattr(devices, "has_dtype", lambda dtype, device: has)
    assert compute_dtype(QuantizationConfig(), CPU) == expected


def test_a_dtype_the_device_lacks_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(devices, "has_dtype", lambda dtype, device: False)
    with pytest.raises(QuantizationError, match=r"got bfloat16.*this CPU.*compute_dtype=float32"):
        compute_dtype(QuantizationConfig(compute_dtype="bfloat16"), CPU)


def test_float32_is_always_there_and_the_cpu_is_asked_for_the_others():
    assert compute_dtype(QuantizationConfig(compute_dtype="float32"), CPU) == torch.float32
    asked = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert devices.has_dtype(torch.bfloat16, CPU) == asked
    assert devices.has_dtype(torch.float16, torch.device("cuda"))
    assert default_device().type in ("cpu", "cuda", "mps", "xpu")


def test_the_bitsandbytes_here_will_do():
    require_bitsandbytes()


@pytest.mark.parametrize("found", ["0.49.9", "0.4", "0.9.0"])
def test_one_that_is_too_old_is_refused(monkeypatch, found):
    monkeypatch.setattr(devices, "version", lambda name: found)
    with pytest.raises(QuantizationError, match=f"0.50 or newer: got {found}. Install it: pip"):
        require_bitsandbytes()


def test_one_that_is_missing_or_broken_is_named(monkeypatch):
    def missing(name):
        raise devices.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(devices, "version", missing)
        with pytest.raises(QuantizationError, match="needs bitsandbytes, which is not installed"):
            require_bitsandbytes()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(QuantizationError, match="cannot be imported"):
        require_bitsandbytes()


def test_a_device_is_found_by_its_name():
    assert find_device(None) == default_device()
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"The device '{name}' cannot be used: "):
            find_device(name)
