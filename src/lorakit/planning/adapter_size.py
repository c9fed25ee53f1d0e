"""How large an adapter's file will be."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

_DTYPE_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}
_ALIGNMENT = 8
_LENGTH_BYTES = 8


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the safetensors file that would hold tensors.

    Args:
        tensors: Their shapes and dtypes count, not their numbers.

    Returns: Bytes; a header of JSON padded to a multiple of 8 and the numbers themselves.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The library sorts by dtype, the widest first, and then by name.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.numel() * tensor.itemsize
        dtype = _DTYPE_NAMES.get(str(tensor.dtype), "I64")
        header[name] = {"dtype": dtype, "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return _LENGTH_BYTES + text + -text % _ALIGNMENT + end
