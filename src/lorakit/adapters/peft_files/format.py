"""Conversion from and to PEFT's file format: tensor keys and configuration fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lorakit.adapters.peft_files.convolutions import Convolutions, to_kernels, to_matrices
from lorakit.adapters.peft_files.parameter_keys import file_paths, to_file_layout
from lorakit.config import LoraConfig, TaskType
from lorakit.config.problems import cut_short, short_repr
from lorakit.errors import AdapterFileError, first_few
from lorakit.initialization import initialization_of
from lorakit.layers import KernelShape
from lorakit.layers.variants.table import VARIANTS, variant_named, with_companions
from lorakit.layers.variants.variant import Variant

PREFIX = "base_model.model."

# Settings that matter in training only, besides those of variants.
_UNSAVED = {"enable_lora", "eva_rho", "init_batches"}
# Fields that describe the file or PEFT itself and change no output.
_INFORMATION = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
# Initializations that do not change the base, so that readers of a trained file can ignore them.
_HARMLESS_INITIALIZATIONS = {"gaussian", "orthogonal"}
# The changes of "pissa" and "olora" to the base can be recomputed.
_READ_INITIALIZATIONS = {*_HARMLESS_INITIALIZATIONS, "pissa", "olora"}
_WRITTEN = {True, False, *_HARMLESS_INITIALIZATIONS}
# Initializations whose changes PEFT can undo when it saves.
_CONVERTIBLE = ("pissa", "corda", "lora_ga")
_FEATURE_KEYS = {
    "lora_A.bias": "a bias on lora_A",
    "lora_B.bias": "a bias on lora_B (lora_bias)",
}


@dataclass
class ParsedKeys:
    """The tensors of a file, sorted by kind."""

    factors: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict[str, tuple[Tensor, Tensor]]
    )
    companions: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    replaced: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    embeddings: frozenset[str] = frozenset()
    base_weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    convolutions: dict[str, KernelShape] = field(default_factory=dict[str, KernelShape])
    trained_tokens: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def tensor_keys(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    replaced: Mapping[str, Tensor],
    embeddings: frozenset[str],
    base_weights: Mapping[str, Tensor],
    companions: Mapping[str, Tensor] = MappingProxyType({}),
    convolutions: Convolutions = MappingProxyType({}),
    stacked: frozenset[str] = frozenset(),
    trained_tokens: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Return tensors under PEFT's keys, without the adapter's name.

    Args:
        factors: (lora_A, lora_B) by path.
        replaced: Heads and biases by their full name in the base.
        embeddings: Paths of the embeddings among `factors`.
        base_weights: Weights of the base by module path.
        companions: Tensors of variants by module path and name.
        convolutions: Kernels of the convolutions among `factors`.
        stacked: Paths of the stacked parameters among `factors`.
        trained_tokens: Trained tokens by the path of their embedding or output layer.
    """
    tensors: dict[str, Tensor] = {}
    paths = file_paths(factors, stacked)
    for path, pair in factors.items():
        if path in convolutions:
            pair = to_kernels(*pair, convolutions[path])
        elif path in stacked:
            pair = to_file_layout(*pair)
        tensors.update(zip(factor_keys(paths[path], path in embeddings), pair, strict=True))
    for key, tensor in companions.items():
        path, _, name = key.rpartition(".")
        variant = variant_named(name)
        kernel = convolutions[path].kernel if path in convolutions else ()
        tensors[f"{PREFIX}{path}.{variant.file_key}"] = variant.to_file(tensor, kernel)
    for path, rows in trained_tokens.items():
        tensors[f"{PREFIX}{path}.token_adapter.trainable_tokens_delta"] = rows
    for key, tensor in replaced.items():
        path, _, last = key.rpartition(".")
        place = f"{paths[path]}.base_layer.{last}" if path in factors else key
        tensors[PREFIX + place] = tensor
    for path, tensor in base_weights.items():
        layer = f"{path}.base_layer" if path in factors else path
        tensors[f"{PREFIX}{layer}.weight"] = tensor
    return tensors


def factor_keys(path: str, is_embedding: bool) -> tuple[str, str]:
    """Return the keys of a module's lora_A and lora_B.

    >>> factor_keys("embed", True)
    ('base_model.model.embed.lora_embedding_A', 'base_model.model.embed.lora_embedding_B')
    """
    if is_embedding:
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def parse_keys(
    tensors: Mapping[str, Tensor], where: str, modules_to_save: tuple[str, ...] = ()
) -> ParsedKeys:
    """Sort the tensors of a PEFT file.

    Args:
        tensors: The file's tensors.
        where: Name of the file for error messages.
        modules_to_save: Value of the configuration. The weight of any other module is a weight of
            the base that PEFT repeats, as for embeddings.

    Raises:
        AdapterFileError: A key is unknown, a factor lacks its partner, or the file uses a feature
            that lorakit does not support.
    """
    parsed = ParsedKeys()
    halves: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    problems: list[str] = []
    for key, tensor in _without_adapter_name(tensors, where).items():
        feature = next((name for part, name in _FEATURE_KEYS.items() if part in key), None)
        if feature:
            raise AdapterFileError(
                f"{where} uses {feature} in {key!r}, which lorakit does not support."
            )
        if not key.startswith(PREFIX):
            problems.append(f"key {key!r} does not start with {PREFIX!r}")
            continue
        name = key.removeprefix(PREFIX)
        if factor := re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name):
            path, is_embedding, letter, _ = factor.groups()
            if letter in halves.setdefault(path, {}):
                problems.append(f"there are two lora_{letter} of {path}")
            halves[path][letter] = tensor
            if is_embedding:
                embeddings.add(path)
        elif found := _companion_in(name):
            path, variant = found
            parsed.companions[f"{path}.{variant.name}"] = variant.from_file(tensor)
        elif rows := re.fullmatch(r"(.+)\.token_adapter\.trainable_tokens_delta", name):
            # For a tied output layer with an update, PEFT stores it below the wrapped layer.
            parsed.trained_tokens[rows[1].removesuffix(".base_layer")] = tensor
        elif ".original_module." in name or re.search(r"\.modules_to_save\.(.+\.)?bias$", name):
            # PEFT repeats the heads' biases under these keys when bias is "all".
            continue
        elif ".modules_to_save." in name:
            problems.append(f"{key} contains an adapter's name, unlike the keys of its factors")
        elif name.endswith(".weight") and not _is_trained(name, modules_to_save):
            owner = name.removesuffix(".weight").removesuffix(".base_layer")
            owner = owner.removesuffix(".token_adapter").removesuffix(".base_layer")
            parsed.base_weights[owner] = tensor
        else:
            parsed.replaced[re.sub(r"\.(base_layer|token_adapter)(?=\.)", "", name)] = tensor
    for path, both in halves.items():
        if len(both) == 2:
            A, B, shape = to_matrices(both["A"], both["B"])
            parsed.factors[path] = (A, B)
            if shape is not None:
                parsed.convolutions[path] = shape
            problems += [
                f"{path}.lora_{letter} has shape {tuple(factor.shape)}, expected a matrix or the "
                "kernels of a convolution"
                for letter, factor in (("A", A), ("B", B))
                if factor.ndim != 2
            ]
        else:
            problems.append(f"{path} has lora_{next(iter(both))} without its partner")
    owners = [key.rpartition(".") for key in parsed.companions]
    problems += [
        f"{path} has {variant_named(name).file_key} without lora_A and lora_B"
        for path, _, name in owners
        if path not in halves
    ]
    if not parsed.factors and not problems:
        problems.append("there is no lora_A and lora_B in it")
    if problems:
        raise AdapterFileError(
            f"The tensors in {where} are not a PEFT adapter: {first_few(problems, 1)}. Expected "
            f"keys such as '{PREFIX}<module path>.lora_A.weight'."
        )
    parsed.embeddings = frozenset(embeddings)
    return parsed


def _companion_in(key: str) -> tuple[str, type[Variant]] | None:
    """Return the path and the variant of a key without prefix, or None if it is another one.

    Older versions of PEFT add ".weight".
    """
    path, _, last = key.removesuffix(".weight").rpartition(".")
    return next(((path, one) for one in with_companions() if one.file_key == last), None)


def _without_adapter_name(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return tensors under the keys of a file, also if they have keys of a model's state dict.

    In a state dict each key of an adapter contains its name: "q_proj.lora_A.default.weight".

    Raises:
        AdapterFileError: There are several adapters.
    """
    parts = [r"lora_(?:embedding_)?[AB]", "trainable_tokens_delta"]
    parts += [re.escape(variant.file_key) for variant in with_companions()]
    part = rf".+\.(?:{'|'.join(parts)})"
    named_key = re.compile(
        rf"(?P<path>{part})\.(?!(?:weight|bias)$)(?P<name>[^.]+)(?P<rest>\.(?:weight|bias))?"
    )
    unnamed_key = re.compile(rf"{part}(?:\.(?:weight|bias))?")
    named = {key: match for key in tensors if (match := named_key.fullmatch(key))}
    if not named:
        return dict(tensors)
    names = sorted({match["name"] for match in named.values()})
    if any(unnamed_key.fullmatch(key) for key in tensors):
        names.append("one without a name")
    if len(names) > 1:
        raise AdapterFileError(
            f"The keys in {where} are those of several adapters: got {', '.join(names)}, expected "
            "one. Save one of them with PEFT's save_pretrained(selected_adapters=[name])."
        )
    copy = f".modules_to_save.{names[0]}."
    return {
        f"{named[key]['path']}{named[key]['rest'] or ''}"
        if key in named
        else key.replace(copy, "."): tensor
        for key, tensor in tensors.items()
    }


def _is_trained(key: str, modules_to_save: tuple[str, ...]) -> bool:
    """Return whether a tensor belongs to a module whose path ends in one of the names."""
    parts = key.split(".")[:-1]
    paths = (".".join(parts[: end + 1]) for end in range(len(parts)))
    return any(path.endswith(modules_to_save) for path in paths)


def config_to_peft(config: LoraConfig, base_model: str | None) -> dict[str, Any]:
    """Return the fields of adapter_config.json."""
    values = config.model_dump(mode="json", include=_list_recorded_settings())
    alpha = config.lora_alpha
    values["lora_alpha"] = int(alpha) if alpha == int(alpha) else alpha
    if not (
        config.init_lora_weights in _WRITTEN
        or initialization_of(config.init_lora_weights).changes_base_in_peft
    ):
        values["init_lora_weights"] = True  # PEFT needs nothing but the factors
    if config.target_parameters:
        values["lora_dropout"] = 0.0  # PEFT has no dropout for parameters; matters in training only
    for key in ("modules_to_save", "target_parameters"):
        values[key] = list(getattr(config, key)) or None
    values |= {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
    }
    return dict(sorted(values.items()))


def config_from_peft(values: Mapping[str, Any], where: str) -> LoraConfig:
    """Return the configuration in a PEFT file.

    Fields that lorakit does not have are accepted if they are off.

    Raises:
        AdapterFileError: The file is not a LoRA adapter or uses features that lorakit does not
            support; names all of them.
        ConfigError: A value is out of range.
    """
    kind = values.get("peft_type")
    if kind != "LORA":
        raise AdapterFileError(
            f"{where} holds a PEFT adapter of type {short_repr(kind)}, expected 'LORA'. lorakit "
            "reads LoRA adapters only."
        )
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise AdapterFileError(
            f"Wrong base_model_name_or_path in {where}: got {short_repr(base)}, expected a hub "
            "id or a directory. Write the name of the base into the file."
        )
    recorded = _list_recorded_settings()
    known = {key: values[key] for key in recorded if values.get(key) is not None}
    unsupported = [
        f"{cut_short(key)}={short_repr(value)}"
        for key, value in values.items()
        if key not in recorded and key not in _INFORMATION and not _is_off(value)
    ]
    initialization = known.get("init_lora_weights", True)
    if initialization == "eva":
        unsupported = [text for text in unsupported if not text.startswith("eva_config=")]
        known["init_lora_weights"] = True
    elif isinstance(initialization, str) and initialization not in _READ_INITIALIZATIONS:
        undone = " (PEFT's path_initial_model_for_weight_conversion undoes that)"
        unsupported.append(
            f"init_lora_weights={short_repr(initialization)}, which changes the base"
            f"{undone if initialization.startswith(_CONVERTIBLE) else ''}"
        )
    if unsupported:
        raise AdapterFileError(
            f"{where} uses features that lorakit does not support: {first_few(unsupported, 10)}. "
            "Convert the adapter with the tool that made it."
        )
    if known.get("task_type") not in [None, *TaskType]:
        known["task_type"] = None
    return LoraConfig.parse(known, where)


def _list_recorded_settings() -> set[str]:
    """Return the settings that files hold."""
    unsaved = {variant.setting for variant in VARIANTS if not variant.is_recorded}
    return LoraConfig.model_fields.keys() - _UNSAVED - unsaved


def _is_off(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []
