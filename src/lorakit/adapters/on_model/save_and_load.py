"""Adapters that a model carries: saved to files, loaded from them, read and filled as tensors."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.carried_fields import carried_fields
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
    adapted_layers,
    require_unmerged,
    unwrapped,
    valid_name,
)
from lorakit.layers import LowRankUpdate
from lorakit.layers.updates.sliced_update import SlicedUpdate


def save_adapter(model: nn.Module, path: str | Path, name: str = "default") -> list[Path]:
    """Write one adapter of a model in PEFT's layout, atomically.

    The class names of a classifier of transformers go into a `lorakit.json` beside it.

    Of a model whose parameters are sharded (FSDP2) take `Adapter.from_model` in every process, and
    save what it returns in one of them.

    Args:
        model: A model with adapters.
        path: Directory for adapter_config.json and adapter_model.safetensors; made if need be.
        name: Which adapter.

    Returns: The paths written.

    Warns:
        LorakitWarning: PEFT does not read such an adapter.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: Its parameters are sharded, or the model is merged: its weights hold the
            adapter already, so that both together would count twice.
    """
    require_unmerged(model, "save an adapter")
    view = view_of(model, name)
    if any(is_sharded(A) for A, _ in view.factors.values()):
        raise AdapterStateError(
            f"Cannot save adapter {name!r} to {path}: this process has a part of it only. Call "
            "Adapter.from_model(model) in every process, and save its result in one of them."
        )
    note = unread_by_peft(unwrapped(model), view.config, view.factors)
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
    """Read an adapter, put it into a model and make it the one that acts.

    Args:
        model: The base, with other adapters or without.
        path: Directory in PEFT's layout, or a hub id.
        name: None takes "default", or where that is taken the directory's name, with "_" for what
            a name cannot have.
        revision: As in `Adapter.load`, as are the next two.
        subfolder: Folder inside the directory or repository.
        token: Of the hub.
        trainable: Whether its parameters require gradients.
        allow_pickle: As in `Adapter.load`.
        allow_edited_config: As in `Adapter.load`.
        max_rank: As in `add_adapter`.

    Returns: What matched.

    Raises:
        MissingFileError: There is no adapter at `path`.
        AdapterFileError: A file is damaged or uses a feature lorakit does not have.
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
    """Return the tensors of one adapter under PEFT's keys, detached: those `save_adapter` writes.

    They are the model's own and no copies, but where files hold something else: of stacked weights,
    of updates whose saved factors are made of their parameters, and of an attention whose output
    projection has not its rank and twice its scaling.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    view = view_of(model, name)
    return _keyed(view, with_outputs_of_files(view.factors, view.config).factors)


def _keyed(view: Adapter, factors: Factors) -> dict[str, Tensor]:
    """Return an adapter's tensors under PEFT's keys, with these factors."""
    return tensor_keys(
        factors,
        view.replaced,
        view.embeddings,
        {},
        view.magnitudes,
        view.convolutions,
        view.stacked,
        view.trained_tokens,
    )


@torch.no_grad()
def load_adapter_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str = "default"
) -> None:
    """Copy tensors under PEFT's keys into an adapter that a model already carries.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: Keys or shapes differ from the adapter's, or an attention's factors
            have values beyond the rank it has here; nothing is copied then.
    """
    places = adapter_state_dict(model, name)
    problems = [f"missing key {key!r}" for key in places if key not in tensors]
    problems += [f"unexpected key {key!r}" for key in tensors if key not in places]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(place.shape)}"
        for key, place in places.items()
        if key in tensors and tensors[key].shape != place.shape
    ]
    if problems:
        raise AdapterMismatchError(
            f"The tensors do not fit adapter {name!r}: {first_few(problems, 1)}. "
            "Load them into the base and configuration they were saved from."
        )
    view = view_of(model, name)
    paths = file_paths(view.factors, view.stacked)
    tensors, places = _with_own_outputs(tensors, view, paths), _keyed(view, view.factors)
    _require_parts_fit(model, tensors, name, paths)
    for path, layer in adapted_layers(model):
        update: LowRankUpdate | None = layer.updates._modules.get(name)  # type: ignore[assignment]
        if update is None:
            continue
        keys = factor_keys(paths[path], path in view.embeddings)
        A, B = (tensors[key] for key in keys)
        if path in view.stacked:
            # The file's layout of these is a copy of what the model carries, and no view.
            A, B = from_file_layout(A, B, update.r)
            own_A, own_B = update.saved_factors()
            copy_whole_(own_A, A)
            copy_whole_(own_B, B)
        elif not update.keeps_saved_factors:
            A, B, _ = to_matrices(A, B)
            update.load_factors_(A, B)
        else:
            continue
        for key in keys:
            del places[key]
    for key, place in places.items():
        copy_whole_(place, tensors[key])


def _require_parts_fit(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str, paths: Mapping[str, str]
) -> None:
    """Refuse factors that mix parts which are adapted one by one, before anything is copied."""
    for path, layer in adapted_layers(model):
        update = layer.updates._modules.get(name)
        if isinstance(update, SlicedUpdate):
            A, B, _ = to_matrices(*(tensors[key] for key in factor_keys(paths[path], False)))
            update.require_fitting(A, B)


def _with_own_outputs(
    tensors: Mapping[str, Tensor], view: Adapter, paths: Mapping[str, str]
) -> Mapping[str, Tensor]:
    """Return a file's tensors with the ranks and scalings that attentions have in the model.

    Args:
        tensors: Under PEFT's keys.
        view: The adapter the model carries.
        paths: Each module's path in these keys.
    """
    keys = {path: factor_keys(paths[path], path in view.embeddings) for path in view.factors}
    saved = {path: (tensors[of_A], tensors[of_B]) for path, (of_A, of_B) in keys.items()}
    own = with_own_outputs(saved, view.factors, view.config)
    changed = {k: t for path in own for k, t in zip(keys[path], own[path], strict=True)}
    return {**tensors, **changed}


def view_of(model: nn.Module, name: str) -> Adapter:
    """Return an adapter whose tensors are the model's own, detached."""
    return Adapter(**carried_fields(model, name))
