"""Ways to damage an adapter directory: each changes it at random and says what it did."""

import json
import os
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.peft_files.files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LENGTH = 8


# ---- values of every type ----


def _odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a JSON value of any type, sometimes an extreme one."""
    made: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, 1, -1, 2, 8, 2**31, 2**63, -(2**63), 10**30, 10**400, 10**4000)),
        lambda: rng.choice((0.0, -0.5, 1.5, 1e-320, 1e308, float("inf"), float("nan"))),
        lambda: rng.choice(
            ("", "q", "all-linear", "LORA", "pissa", "main", ".", "../..", "*", "(")
        ),
        lambda: rng.choice(("([a-z_.0-9]+)+[!?]", "(.*)*[!?]", "((a{999}){999}){9}", "(" * 4000)),
        lambda: rng.choice(("\0", "\x1b[2J", "\ud800", "a\nb", "\u202e", "x" * 300, "y" * 100_000)),
        lambda: "".join(rng.choice(string.printable) for _ in range(rng.randint(1, 12))),
    ]
    if depth < 3:
        made += [
            lambda: [_odd_value(rng, depth + 1) for _ in range(rng.randint(0, 3))],
            lambda: {
                str(_odd_value(rng, 3))[:50].encode("utf-8", "replace").decode(): _odd_value(
                    rng, depth + 1
                )
                for _ in range(rng.randint(0, 3))
            },
        ]
    return rng.choice(made)()


# ---- the configuration ----


def _write_config(path: Path, values: Any) -> None:
    (path / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")


def _setting_changed(rng: random.Random, path: Path) -> str:
    values = json.loads((path / CONFIG_FILE).read_text())
    key = rng.choice([*values, "use_qalora", "unheard_of", "lora_bias", "runtime_config"])
    values[key] = _odd_value(rng)
    _write_config(path, values)
    return f"{key}={str(values[key])[:80] if not isinstance(values[key], int) else 'a number'!r}"


def _setting_lost(rng: random.Random, path: Path) -> str:
    values = json.loads((path / CONFIG_FILE).read_text())
    key = rng.choice([*values])
    del values[key]
    _write_config(path, values)
    return key


def _configuration_replaced(rng: random.Random, path: Path) -> str:
    texts = {
        "another value": lambda: json.dumps(_odd_value(rng)).encode(),
        "digits": lambda: b'{"peft_type": "LORA", "r": ' + b"1" * 5000 + b"}",
        "depth": lambda: b'{"r":' * 50_000 + b"1" + b"}" * 50_000,
        "lists": lambda: b"[" * 100_000,
        "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "UTF-16": lambda: (path / CONFIG_FILE).read_text().encode("utf-16"),
        "a BOM": lambda: b"\xef\xbb\xbf" + (path / CONFIG_FILE).read_bytes(),
        "nothing": lambda: b"",
        "twice": lambda: b'{"r": 1, ' + (path / CONFIG_FILE).read_bytes().lstrip()[1:],
    }
    kind = rng.choice([*texts])
    (path / CONFIG_FILE).write_bytes(texts[kind]())
    return kind


# ---- the header ----


def header_of(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a file of tensors, and where the tensors begin."""
    length = int.from_bytes(data[:_LENGTH], "little")
    return json.loads(data[_LENGTH : _LENGTH + length]), _LENGTH + length


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Write the header as a function has changed it, and return what that function says."""
    data = (path / WEIGHTS_FILE).read_bytes()
    header, start = header_of(data)
    done = change(header)
    text = json.dumps(header).encode()
    (path / WEIGHTS_FILE).write_bytes(len(text).to_bytes(_LENGTH, "little") + text + data[start:])
    return done


def _header_changed(rng: random.Random, path: Path) -> str:
    def change(header: dict[str, Any]) -> str:
        key = rng.choice([key for key in header if key != "__metadata__"])
        part = rng.choice(("dtype", "shape", "data_offsets", "name", "all", "entry", "metadata"))
        if part == "dtype":
            names = (*FLOATS, "U8", "I8", "I64", "BOOL", "U64", "F8_E4M3", "C64", "F4", "")
            header[key]["dtype"] = rng.choice(names)
        elif part == "name":
            others = ("", "x", "base_model.model.q.lora_A.weight", "a\0", "\ud800", "z" * 9000)
            header[rng.choice((*others, f"{key}.weight", key.upper()))] = header.pop(key)
        elif part == "all":
            header[key] = _odd_value(rng)
        elif part == "entry":
            header[key][rng.choice(("dtype", "shape", "data_offsets", "x"))] = _odd_value(rng)
        elif part == "metadata":
            header["__metadata__"] = _odd_value(rng)
        else:
            numbers = header[key][part]
            numbers[rng.randrange(len(numbers))] += rng.choice(
                (-1, 1, 4, -4, 2**40, 2**64, -(2**70))
            )
        return f"{part} of {key[-30:]!r}"

    return rewrite_header(path, change)


def _header_twice(rng: random.Random, path: Path) -> str:
    data = (path / WEIGHTS_FILE).read_bytes()
    header, start = header_of(data)
    key = rng.choice([key for key in header if key != "__metadata__"])
    text = json.dumps(header).encode()
    text = (
        b"{" + json.dumps(key).encode() + b":" + json.dumps(header[key]).encode() + b"," + text[1:]
    )
    (path / WEIGHTS_FILE).write_bytes(len(text).to_bytes(_LENGTH, "little") + text + data[start:])
    return key[-30:]


def _header_length(rng: random.Random, path: Path) -> str:
    length = rng.choice((0, 1, 2**20, 2**32, 2**63, 2**64 - 1, rng.randrange(2**16)))
    data = (path / WEIGHTS_FILE).read_bytes()
    (path / WEIGHTS_FILE).write_bytes(length.to_bytes(_LENGTH, "little") + data[_LENGTH:])
    return str(length)


# ---- bytes and tensors ----


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def _bytes_changed(rng: random.Random, path: Path) -> str:
    file = path / rng.choice((WEIGHTS_FILE, WEIGHTS_FILE, CONFIG_FILE))
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(data)
    return file.name


def _length_changed(rng: random.Random, path: Path) -> str:
    file = path / rng.choice((WEIGHTS_FILE, CONFIG_FILE))
    data = file.read_bytes()
    cut = rng.randrange(len(data) + 1)
    kinds = {
        "cut": data[:cut],
        "more": data + rng.randbytes(rng.randint(1, 20)),
        "hole": data[:cut] + data[cut + rng.randint(1, 9) :],
        "twice": data + data,
        "zeros": bytes(len(data)),
    }
    kind = rng.choice([*kinds])
    file.write_bytes(kinds[kind])
    return f"{file.name} {kind}"


def _sparse(rng: random.Random, path: Path) -> str:
    file = path / rng.choice((WEIGHTS_FILE, CONFIG_FILE))
    with file.open("r+b") as opened:
        opened.truncate(2**40)
    return file.name


def _numbers_changed(rng: random.Random, path: Path) -> str:
    """Put NaN, infinity or the largest number into a tensor."""
    data = bytearray((path / WEIGHTS_FILE).read_bytes())
    header, start = header_of(bytes(data))
    key = rng.choice([key for key in header if key != "__metadata__"])
    dtype = FLOATS[header[key]["dtype"]]
    value = rng.choice((float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).max))
    number = torch.full((1,), value, dtype=dtype)
    begin, end = header[key]["data_offsets"]
    at = start + rng.randrange(begin, end, number.itemsize)
    data[at : at + number.itemsize] = bytes_of(number)
    (path / WEIGHTS_FILE).write_bytes(data)
    return f"{value} in {key[-30:]!r}"


def _tensor_lost(rng: random.Random, path: Path) -> str:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / WEIGHTS_FILE)
    key = rng.choice([*tensors])
    kind = rng.choice(("lost", "turned", "longer", "flat", "scalar", "whole", "more"))
    tensor = tensors.pop(key)
    changed = {
        "turned": lambda: tensor.flatten().reshape(-1, 1),
        "longer": lambda: torch.cat([tensor, tensor]),
        "flat": lambda: tensor.flatten(),
        "scalar": lambda: tensor.flatten()[0].clone(),
        "whole": lambda: tensor.to(rng.choice((torch.int64, torch.uint8, torch.bool))),
        "more": lambda: tensor[None, :, :, None],
    }
    if kind != "lost":
        tensors[key] = changed[kind]()
    save_file(tensors, path / WEIGHTS_FILE)
    return f"{kind}: {key[-30:]!r}"


# ---- files ----


def _files_changed(rng: random.Random, path: Path) -> str:
    name = rng.choice((WEIGHTS_FILE, CONFIG_FILE))
    kind = rng.choice(("lost", "a folder", "a loop", "dangling", "a fifo", "more", "no rights"))
    if kind == "more":
        (path / rng.choice(("adapter_model.bin", ".hidden", "x" * 200))).write_bytes(b"\x80\x04.")
        return kind
    if kind == "no rights":
        (path / name).chmod(0)
        return f"{name} {kind}"
    (path / name).unlink()
    if kind == "a folder":
        (path / name).mkdir()
    elif kind == "a loop":
        (path / name).symlink_to(name)
    elif kind == "dangling":
        (path / name).symlink_to("nowhere")
    elif kind == "a fifo":
        os.mkfifo(path / name)
    return f"{name} {kind}"


def _pickled(rng: random.Random, path: Path) -> str:
    """Replace the safetensors file by a pickle."""
    from safetensors.torch import load_file

    tensors: Any = load_file(path / WEIGHTS_FILE)
    key = rng.choice([*tensors])
    kinds: dict[str, Callable[[], Any]] = {
        "tensors": lambda: tensors,
        "integers as names": lambda: dict(enumerate(tensors.values())),
        "nested": lambda: {"state_dict": tensors},
        "a number": lambda: {**tensors, key: 3.5},
        "a list": lambda: list(tensors.values()),
        "none": lambda: None,
        "complex": lambda: {**tensors, key: tensors[key].to(torch.complex64)},
        "float8": lambda: {**tensors, key: tensors[key].to(torch.float8_e4m3fn)},
        "sparse": lambda: {**tensors, key: tensors[key].to_sparse()},
        "expanded": lambda: {**tensors, key: torch.zeros(1).expand(2**40)},
        "control characters": lambda: {**tensors, "\x1b[2J": tensors[key]},
        "a parameter": lambda: {**tensors, key: torch.nn.Parameter(tensors[key])},
        "bytes": lambda: b"x",
    }
    kind = rng.choice([*kinds])
    torch.save(kinds[kind](), path / PICKLE_FILE)
    (path / WEIGHTS_FILE).unlink()
    if rng.random() < 0.3:
        data = bytearray((path / PICKLE_FILE).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (path / PICKLE_FILE).write_bytes(data)
        kind += ", a bit flipped"
    return kind


LAST = (_files_changed, _sparse)
"""What is left cannot be read to be damaged further."""

DAMAGE = (
    *(_setting_changed, _setting_changed, _setting_changed, _setting_lost),
    *(_configuration_replaced, _header_changed, _header_changed, _header_twice, _header_length),
    *(_bytes_changed, _length_changed, _sparse, _numbers_changed, _tensor_lost),
    *(_files_changed, _pickled),
)
