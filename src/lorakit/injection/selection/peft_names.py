"""How PEFT 0.21 interprets the names of modules in adapter files, by the type of the model.

With transformers 5 the experts of a mixture are stacked in parameters. So that adapters made with
transformers 4 still load, PEFT takes some names in `target_modules` for experts' weights in
certain types of models, and drops the modules, including remaining layers of that name in shared
experts and dense blocks. The names of their weights in `target_parameters` stay.

It also renames the keys of every file as transformers renames those of older checkpoints, which
changes some current names too.
"""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lorakit.config import LoraConfig
from lorakit.errors import first_few
from lorakit.injection.selection.heads import TASKS_WITH_HEADS
from lorakit.injection.selection.targets import name_matches
from lorakit.injection.selection.variants import obstacle_of_parameters, variants_of
from lorakit.injection.state import base_modules

_MIXTRAL_NAMES = frozenset({"gate", "w1", "w2", "w3"})
_QWEN2_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj"})

NAMES_OF_EXPERTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL_NAMES),
    **dict.fromkeys(
        (
            *("Dots3NoteTextModel", "UnlimitedOcrTextModel", "afmoe", "beam", "cohere2_moe"),
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe"),
            *("exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe"),
            *("glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "olmoe", "qwen3_moe"),
            *("qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker"),
            *("sarvam_mla", "solar_open"),
        ),
        _QWEN2_NAMES,
    ),
}
"""Last parts of module paths that PEFT takes for experts' weights, by `model_type`."""

_LEAVE_OUT = (
    "Leave them out with exclude_modules, or merge the adapter, where it is to be read by PEFT."
)

_HEAD_NAMES = ("classifier", "score")
"""Names of heads that PEFT adds to `modules_to_save` for classification tasks."""

FORBIDDEN_NAMES: dict[str, frozenset[str]] = dict.fromkeys(
    ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"),
    frozenset({"out_proj", "conv1d"}),
)
"""Last parts of module paths that PEFT refuses to adapt, by `model_type`."""


def is_taken_for_experts(model: nn.Module, path: str) -> bool:
    """Return whether PEFT drops a module that `target_modules` names in this model."""
    return _last(path) in NAMES_OF_EXPERTS.get(model_type_of(model), ())


def unread_by_peft(model: nn.Module, config: LoraConfig, paths: Iterable[str]) -> str | None:
    """Return why PEFT does not read an adapter of these modules as lorakit does, or None."""
    kind = f"models of type {model_type_of(model)!r}"
    paths = list(paths)
    refused = FORBIDDEN_NAMES.get(model_type_of(model), ())
    forbidden = [path for path in paths if _last(path) in refused]
    if forbidden:
        return (
            f"PEFT does not read this adapter: it refuses to adapt {_names_of(forbidden)} in "
            f"{kind}, expected other modules. {_LEAVE_OUT}"
        )
    renamed = _find_renamed(model, paths)
    if renamed:
        return (
            f"PEFT does not read this adapter: in {kind} it changes the keys of "
            f"{_names_of(renamed)} to those of modules that are not there, and drops their "
            f"factors. {_LEAVE_OUT}"
        )
    mistaken = _find_taken_for_saved(model, config)
    if mistaken:
        return (
            f"PEFT does not read this adapter: it takes {first_few(mistaken, 2)} for "
            f"modules_to_save={list(config.modules_to_save)} too, whose names theirs end in, and "
            "misses their weights in the file. Merge the adapter where it is to be read by PEFT."
        )
    unsaved = _heads_left_out(model, config)
    if unsaved:
        return (
            f"PEFT does not read this adapter: with task_type={config.task_type} it looks for "
            f"{first_few(unsaved, 2)} in the file, which exclude_modules leaves out. Leave "
            "task_type out, or merge the adapter, where it is to be read by PEFT."
        )
    modules = dict(base_modules(model))
    groups = {path: getattr(modules.get(path), "groups", 1) for path in paths}
    for variant in variants_of(config):
        other = {p: said for p in paths if (said := variant.difference_in_peft(groups[p]))}
        if other:
            return (
                f"PEFT does not read this adapter as lorakit does: with {variant.setting} it "
                f"{next(iter(other.values()))} ({first_few(other, 2)}) in another way. Leave them "
                "out with exclude_modules where the adapter is to be read by PEFT."
            )
    impossible = obstacle_of_parameters(config)
    taken = [path for path in paths if impossible and is_taken_for_experts(model, path)]
    if impossible and taken:
        setting, reason = impossible
        return (
            f"PEFT does not read this adapter: it takes {_names_of(taken)} for the names of "
            f"experts in {kind}, and a stacked weight {reason} there, expected other modules "
            f"with {setting}. Leave them out with exclude_modules, leave {setting} out, or merge "
            "the adapter, where it is to be read by PEFT."
        )
    return None


def _find_taken_for_saved(model: nn.Module, config: LoraConfig) -> list[str]:
    """Return the modules that PEFT takes for trained in full because of the end of their name."""
    names = tuple(config.modules_to_save)
    if not names:
        return []
    paths = [path for path, _ in base_modules(model) if path.endswith(names)]
    # The whole path of a module selects only that module.
    open_names = [name for name in names if name not in paths]
    return [path for path in paths if path not in names and not name_matches(open_names, path)]


def _heads_left_out(model: nn.Module, config: LoraConfig) -> list[str]:
    """Return the modules that PEFT expects in the file of a task, and that are not in it."""
    if config.task_type not in TASKS_WITH_HEADS:
        return []
    heads = [path for path, _ in base_modules(model) if _last(path) in _HEAD_NAMES]
    return [path for path in heads if not name_matches(config.modules_to_save, path)]


def _find_renamed(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Return the modules whose keys PEFT changes when it reads a file."""
    is_converted = get_checkpoint_conversion_mapping(model_type_of(model)) is not None
    if not isinstance(model, PreTrainedModel) or not is_converted:
        return []
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    keys = {path: f"{path}.lora_A.default.weight" for path in paths}
    renamed = {path: rename_source_key(key, renamings, [])[0] for path, key in keys.items()}
    # PEFT restores a name that has only lost its beginning.
    return [path for path, key in keys.items() if not key.endswith(renamed[path])]


def _names_of(paths: Iterable[str]) -> str:
    return first_few(sorted({_last(path) for path in paths}), 4)


def model_type_of(model: nn.Module) -> str:
    """Return the `model_type` of a transformers model, or an empty string."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _last(path: str) -> str:
    return path.rpartition(".")[2]
