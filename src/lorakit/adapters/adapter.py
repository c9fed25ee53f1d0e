"""The adapter as a value: a configuration and tensors by module path, with no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lorakit.adapters.files import read_adapter_files, write_adapter_files
from lorakit.adapters.peft_format import config_from_peft, config_to_peft, parse_keys, tensor_keys
from lorakit.adapters.sharded import copy_whole_, is_sharded, whole
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, AdapterMismatchError, AdapterStateError
from lorakit.injection import Injection, adapter_names, add_adapter
from lorakit.injection.plan_from_tensors import saved_tensors
from lorakit.injection.state import (
    adapted_layers,
    replaced_modules,
    require_adapter,
    unwrapped,
)
from lorakit.layers import LoraEmbedding


@dataclass(frozen=True)
class Adapter:
    """An adapter without a model.

    Attributes:
        config: The configuration.
        factors: (lora_A (r, in), lora_B (out, r)) by module path.
        magnitudes: Trained lengths of the rows of the weight with its update (DoRA), (out,), by
            module path; empty without `use_dora`.
        replaced: Trained heads and biases by their full name in the base, such as
            "classifier.weight".
        embeddings: Paths of the adapted embeddings; their lora_A is (r, vocabulary).
        base_weights: Weights of the base that the file repeats, by module path; they are
            compared with the base when the adapter is put into a model.
        base_model: Hub id or directory of the base, where known.
    """

    config: LoraConfig
    factors: Mapping[str, tuple[Tensor, Tensor]]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: frozenset[str] = frozenset()
    base_weights: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, *, allow_pickle: bool = False) -> Self:
        """Read an adapter from a directory in PEFT's layout, or from the hub.

        Args:
            path: Directory with adapter_config.json and adapter_model.safetensors, or a hub id.
            allow_pickle: Whether adapter_model.bin may be read where there are no safetensors; of
                tensors alone (`weights_only`).

        Raises:
            MissingFileError: There is no such directory, or it holds no adapter.
            AdapterFileError: A file is damaged, uses a feature lorakit does not have, or its
                tensors and configuration contradict each other.
        """
        values, tensors, where = read_adapter_files(path, allow_pickle=allow_pickle)
        config = config_from_peft(values, where)
        keys = parse_keys(tensors, where, config.modules_to_save)
        for module_path, (A, B) in keys.factors.items():
            r = config.rank_for(module_path)
            if A.shape[0] != r or B.shape[1] != r:
                raise AdapterFileError(
                    f"Rank in {where} at {module_path}: lora_A is {tuple(A.shape)} and lora_B "
                    f"{tuple(B.shape)}, but the configuration says r={r}. The two files do not "
                    "belong together."
                )
            if config.use_dora != (module_path in keys.magnitudes):
                raise AdapterFileError(
                    f"lora_magnitude_vector in {where} at {module_path}: got "
                    f"{'none' if config.use_dora else 'one'}, but the configuration says "
                    f"use_dora={config.use_dora}. The two files do not belong together."
                )
        return cls(
            config,
            keys.factors,
            keys.replaced,
            keys.embeddings,
            keys.base_weights,
            values.get("base_model_name_or_path"),
            keys.magnitudes,
        )

    @classmethod
    def from_model(cls, model: nn.Module, name: str = "default") -> Self:
        """Copy an adapter out of a model.

        Where the parameters are sharded, every process has to call it, and gets the whole.

        Raises:
            AdapterNameError: There is no such adapter.
        """
        view = view_of(model, name)
        return cls(
            view.config,
            {path: (_copied(A), _copied(B)) for path, (A, B) in view.factors.items()},
            {key: _copied(tensor) for key, tensor in view.replaced.items()},
            view.embeddings,
            {},
            view.base_model,
            {path: _copied(magnitude) for path, magnitude in view.magnitudes.items()},
        )

    def save(self, path: str | Path) -> list[Path]:
        """Write PEFT's two files, each whole or not at all.

        Args:
            path: Directory to write to; made if need be.

        Returns: The paths written.
        """
        tensors = tensor_keys(
            self.factors, self.replaced, self.embeddings, self.base_weights, self.magnitudes
        )
        values = config_to_peft(self.config, self.base_model)
        return write_adapter_files(Path(path), values, tensors)

    def delta_weight(self, path: str) -> Tensor:
        """Return s B A of one module in float32, (out, in); (dim, vocabulary) for an embedding.

        Raises:
            AdapterMismatchError: The adapter does not adapt that module, or scales the base's rows
                (DoRA), so that what it adds depends on the base.
        """
        if path not in self.factors:
            raise AdapterMismatchError(
                f"The adapter has no update for {path!r}. It adapts: {', '.join(self.factors)}."
            )
        if path in self.magnitudes:
            raise AdapterMismatchError(
                f"What the adapter adds to {path!r} depends on the base: it has a magnitude "
                "(use_dora), expected an update that is added as it is. Merge it into its base "
                "and subtract the weights."
            )
        A, B = self.factors[path]
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.config.scaling_for(path) * (B.to(wide) @ A.to(wide))

    def count_parameters(self) -> int:
        """Return the number of trained parameters: factors, magnitudes, heads and biases."""
        lora = sum(A.numel() + B.numel() for A, B in self.factors.values())
        others = (*self.magnitudes.values(), *self.replaced.values())
        return lora + sum(tensor.numel() for tensor in others)


def _copied(tensor: Tensor) -> Tensor:
    return whole(tensor) if is_sharded(tensor) else tensor.clone()


def save_adapter(model: nn.Module, path: str | Path, name: str = "default") -> list[Path]:
    """Write one adapter of a model in PEFT's layout, atomically.

    Of a model whose parameters are sharded (FSDP2) take `Adapter.from_model` in every process, and
    save what it returns in one of them.

    Args:
        model: A model with adapters.
        path: Directory for adapter_config.json and adapter_model.safetensors; made if need be.
        name: Which adapter.

    Returns: The paths written.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: Its parameters are sharded.
    """
    view = view_of(model, name)
    if any(is_sharded(A) for A, _ in view.factors.values()):
        raise AdapterStateError(
            f"Cannot save adapter {name!r} to {path}: this process has a part of it only. Call "
            "Adapter.from_model(model) in every process, and save its result in one of them."
        )
    return view.save(path)


def load_adapter(
    model: nn.Module,
    path: str | Path,
    name: str | None = None,
    *,
    trainable: bool = False,
    allow_pickle: bool = False,
) -> Injection:
    """Read an adapter, put it into a model and make it the one that acts.

    Args:
        model: The base, with other adapters or without.
        path: Directory in PEFT's layout, or a hub id.
        name: None takes "default", or the directory's name where that is taken.
        trainable: Whether its parameters require gradients.
        allow_pickle: As in `Adapter.load`.

    Returns: What matched.

    Raises:
        MissingFileError: There is no adapter at `path`.
        AdapterFileError: A file is damaged or uses a feature lorakit does not have.
        AdapterMismatchError: The adapter was made for another base.
        AdapterNameError: The name is taken or malformed.
    """
    adapter = Adapter.load(path, allow_pickle=allow_pickle)
    if name is None:
        name = Path(path).name if "default" in adapter_names(model) else "default"
    return add_adapter(model, adapter, name, trainable=trainable)


def adapter_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return the tensors of one adapter under PEFT's keys, detached but not copied.

    Raises:
        AdapterNameError: There is no such adapter.
    """
    view = view_of(model, name)
    return tensor_keys(view.factors, view.replaced, view.embeddings, {}, view.magnitudes)


@torch.no_grad()
def load_adapter_state_dict(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str = "default"
) -> None:
    """Copy tensors under PEFT's keys into an adapter that a model already carries.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterMismatchError: Keys or shapes differ from the adapter's; nothing is copied then.
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
        more = f"; {len(problems) - 1} more" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"The tensors do not fit adapter {name!r}: {problems[0]}{more}. "
            "Load them into the base and configuration they were saved from."
        )
    for key, place in places.items():
        copy_whole_(place, tensors[key])


def view_of(model: nn.Module, name: str) -> Adapter:
    """Return an adapter whose tensors are the model's own, detached."""
    state = require_adapter(model, name)
    config = state.configs[name]
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    embeddings = set()
    for path, layer in adapted_layers(model):
        if name not in layer.updates:
            continue
        update = layer.updates[name]
        factors[path] = (update.lora_A.detach(), update.lora_B.detach())  # type: ignore[union-attr,operator]
        if update.magnitude is not None:
            magnitudes[path] = update.magnitude.detach()  # type: ignore[union-attr,operator]
        if isinstance(layer, LoraEmbedding):
            embeddings.add(path)
        if update.bias is not None:
            replaced[f"{path}.bias"] = update.bias.detach()  # type: ignore[union-attr,operator]
    for path, module in replaced_modules(model):
        if name not in module.trained_copies:
            continue
        trained = module.trained_copies[name]
        if path in config.modules_to_save:
            own = saved_tensors(trained)
        else:
            own = {
                key: parameter
                for key, parameter in trained._parameters.items()
                if parameter is not None and parameter is not module._parameters[key]
            }
        replaced.update({f"{path}.{key}": tensor.detach() for key, tensor in own.items()})
    return Adapter(
        config, factors, replaced, frozenset(embeddings), {}, _base_name(model), magnitudes
    )


def _base_name(model: nn.Module) -> str | None:
    """Return the hub id or directory a transformers model was loaded from."""
    return getattr(unwrapped(model), "name_or_path", None) or None
