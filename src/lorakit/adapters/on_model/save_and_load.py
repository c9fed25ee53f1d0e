"""Saving and loading adapters of a model, as files and as state dicts."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.carried_fields import carried_fields, tied_conflicts
from lorakit.adapters.inference_settings import save_class_names
from lorakit.adapters.peft_files.convolutions import to_matrices
from lorakit.adapters.peft_files.format import factor_keys, tensor_keys
from lorakit.adapters.peft_files.parameter_keys import (
    file_paths,
    from_file_layout,
    with_outputs_of_files,
    with_own_outputs,
)
from lorakit.adapters.ranks import Factors
from lorakit.adapters.sharded import copy_whole_, is_sharded
from lorakit.errors import AdapterMismatchError, AdapterStateError, LorakitWarning, first_few
from lorakit.injection import Injection, adapter_names, add_adapter
from lorakit.injection.selection.peft_names import unread_by_peft
from lorakit.injection.state import (
    require_unmerged,
    unwrap,
    updates_named,
    valid_name,
)


def save_adapter(model: nn.Module, path: str | Path, name: str = "default") -> list[Path]:
    """Write one adapter of a model in PEFT's layout, atomically.

    The class names of a transformers classifier are written to `lorakit.json` beside it.

    For a model with sharded parameters (FSDP2), call `Adapter.from_model` in every process, and
    save the result in one of them.

    Args:
        model: A model with adapters.
        path: Directory for adapter_config.json and adapter_model.safetensors; created if necessary.
        name: Name of the adapter.

    Returns: The paths written.

    Warns:
        LorakitWarning: PEFT cannot read the adapter.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: The parameters are sharded, or the model is merged: its weights contain
            the adapter already, which would count twice.
    """
    require_unmerged(model, "save an adapter")
    view = view_of(model, name)
    if any(is_sharded(A) for A, _ in view.factors.values()):
        raise AdapterStateError(
            f"Cannot save adapter {name!r} to {path}: this process has only a shard of it. Call "
            "Adapter.from_model(model) in every process, and save the result in one of them."
        )
    note = unread_by_peft(unwrap(model), view.config, view.factors)
    if note is not None:
        warnings.warn(note, LorakitWarning, stacklevel=2)
    return [*view.save(path), *save_class_names(model, view.config, path)]


def load_adapter(
    model: nn.Module,
    path: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    trainable: bool = False,
    allow_pickle: bool = False,
    allow_edited_config: bool = False,
    max_rank: int | None = None,
) -> Injection:
    """Load an adapter, add it to a model and activate it.

    Args:
        model: The base, with or without other adapters.
        path: Directory in PEFT's layout, or a hub id.
        name: Name of the adapter; None is "default" or, if that is taken, the directory's name
            with "_" for invalid characters.
        revision: As in `Adapter.load`.
        subfolder: As in `Adapter.load`.
        token: As in `Adapter.load`.
        trainable: Whether its parameters require gradients.
        allow_pickle: As in `Adapter.load`.
        allow_edited_config: As in `Adapter.load`.
        max_rank: As in `add_adapter`.

    Returns: The injection: the modules that the adapter matched.

    Raises:
        MissingFileError: There is no adapter at `path`.
        AdapterFileError: A file is damaged or uses a feature that lorakit does not support.
        AdapterMismatchError: The adapter was made for another base.
        AdapterNameError: The name is taken or malformed.
    """
    adapter = Adapter.load(
        path,
        revision=revision,
        subfolder=subfolder,
        token=token,
        allow_pickle=allow_pickle,
        allow_edited_config=allow_edited_config,
    )
    if name is None:
        folder = os.path.basename(os.path.abspath(Path(path) / (subfolder or "")))
        name = valid_name(folder) if "default" in adapter_names(model) else "default"
    return add_adapter(model, adapter, name, trainable=trainable, max_rank=max_rank)


def adapter_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return the detached tensors of one adapter under PEFT's keys, as `save_adapter` writes them.

    They share the model's memory unless files hold something else: for stacked weights, for updates
    whose saved factors are computed from their parameters, and for an attention whose output
    projection does not have the attention's rank and twice its scaling.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    view = view_of(model, name)
    return _tensors_by_key(view, with_outputs_of_files(view.factors, view.config).factors)


def _tensors_by_key(view: Adapter, factors: Factors) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's keys, with these factors."""
    return tensor_keys(
        factors,
        view.replaced,
        view.embeddings,
        {},
        view.companions,
        view.convolutions,
        view.stacked,
        view.trained_tokens,
    )


@torch.no_grad()
def load_adapter_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str = "default"
) -> None:
    """Copy tensors under PEFT's keys into an adapter of a model.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: Keys or shapes differ from the adapter's, or an attention's factors
            are not zero beyond its rank in the model; nothing is copied.
    """
    places = adapter_state_dict(model, name)
    problems = [f"missing key {key!r}" for key in places if key not in tensors]
    problems += [f"unexpected key {key!r}" for key in tensors if key not in places]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(place.shape)}"
        for key, place in places.items()
        if key in tensors and tensors[key].shape != place.shape
    ]
    problems += tied_conflicts(places, tensors)
    if problems:
        raise AdapterMismatchError(
            f"The tensors do not fit adapter {name!r}: {first_few(problems, 1)}. "
            "Load them into the base and configuration they were saved from."
        )
    view = view_of(model, name)
    paths = file_paths(view.factors, view.stacked)
    tensors = _with_own_outputs(tensors, view, paths)
    places = _tensors_by_key(view, view.factors)
    _require_forms(model, tensors, name, paths)
    for path, _, update in updates_named(model, name):
        keys = factor_keys(paths[path], path in view.embeddings)
        pair = tensors[keys[0]], tensors[keys[1]]
        if path in view.stacked:
            # The file's layout of these is a copy of the model's tensors, not a view.
            for place, values in zip(
                update.saved_factors(), from_file_layout(*pair, update.r), strict=True
            ):
                copy_whole_(place, values)
        elif not update.keeps_saved_factors:
            A, B, _ = to_matrices(*pair)
            update.load_factors_(A, B)
        else:
            continue
        for key in keys:
            del places[key]
    for key, place in places.items():
        copy_whole_(place, tensors[key])


def _require_forms(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str, paths: Mapping[str, str]
) -> None:
    """Reject factors that do not have the form of their update, before anything is copied."""
    for path, _, update in updates_named(model, name):
        if update.keeps_saved_factors:
            continue
        A, B, _ = to_matrices(*(tensors[key] for key in factor_keys(paths[path], False)))
        misfit = update.misfit(A, B)
        if misfit is not None:
            raise AdapterMismatchError(
                f"The tensors do not fit adapter {name!r}: {path} {misfit}. Load them into the "
                "base and configuration they were saved from."
            )


def _with_own_outputs(
    tensors: Mapping[str, Tensor], view: Adapter, paths: Mapping[str, str]
) -> Mapping[str, Tensor]:
    """Return a file's tensors with the ranks and scalings of attentions in the model.

    Args:
        tensors: Tensors under PEFT's keys.
        view: The adapter in the model.
        paths: Path of each module in these keys.
    """
    keys = {path: factor_keys(paths[path], path in view.embeddings) for path in view.factors}
    saved = {path: (tensors[of_A], tensors[of_B]) for path, (of_A, of_B) in keys.items()}
    restored = with_own_outputs(saved, view.factors, view.config)
    changed = {k: t for path in restored for k, t in zip(keys[path], restored[path], strict=True)}
    return {**tensors, **changed}


def view_of(model: nn.Module, name: str) -> Adapter:
    """Return an adapter that shares the model's tensors, detached."""
    return Adapter(**carried_fields(model, name))
