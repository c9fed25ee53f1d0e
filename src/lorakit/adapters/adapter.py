"""The adapter as a value: a configuration and tensors by module path, without a model."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from lorakit.adapters.carried_fields import carried_fields
from lorakit.adapters.older_names import in_names_of
from lorakit.adapters.peft_files.consistency import require_selected
from lorakit.adapters.peft_files.convolutions import Convolutions
from lorakit.adapters.peft_files.files import (
    read_adapter_files,
    weights_file_bytes,
    write_adapter_files,
)
from lorakit.adapters.peft_files.format import (
    config_from_peft,
    config_to_peft,
    parse_keys,
    tensor_keys,
)
from lorakit.adapters.peft_files.parameter_keys import (
    find_in_base,
    stacked_paths,
    with_outputs_of_files,
    with_patterns_of_files,
)
from lorakit.adapters.ranks import Factors
from lorakit.adapters.sharded import is_sharded, whole
from lorakit.adapters.trained_tokens import check_trained_tokens
from lorakit.config import LoraConfig
from lorakit.config.frozen import freeze_fields
from lorakit.errors import AdapterFileError, AdapterMismatchError, LorakitWarning, first_few
from lorakit.initialization import initialization_of
from lorakit.injection.selection.variants import base_dependent, variants_of
from lorakit.layers import KernelShape
from lorakit.layers.variants.table import with_companions

_AdapterClass = TypeVar("_AdapterClass", bound=type[Any])


def _taking_magnitudes(made: _AdapterClass) -> _AdapterClass:
    """Let a class also take `magnitudes` by module path, the former name of such companions."""
    create = made.__init__

    @wraps(create)
    def __init__(  # noqa: N807 - it becomes a method
        self: Any, *args: Any, magnitudes: Mapping[str, Tensor] | None = None, **fields: Any
    ) -> None:
        if magnitudes is not None:
            others = dict(fields.get("companions", {}))
            others = {key: one for key, one in others.items() if not key.endswith(".magnitude")}
            fields["companions"] = others | {f"{p}.magnitude": m for p, m in magnitudes.items()}
        create(self, *args, **fields)

    made.__init__ = __init__
    return made


@_taking_magnitudes
@dataclass(frozen=True)
class Adapter:
    """An adapter without a model.

    Attributes:
        config: The configuration.
        factors: (lora_A (r, in), lora_B (out, r)) by module path; for stacked weights of experts
            ((experts, r, in), (experts, out, r)) by the parameter's path.
        companions: Tensors that variants add to the factors, by module path and name: with
            `use_dora` one "path.magnitude" (out,) for each module, without none.
        replaced: Trained heads and biases by their full name in the base, such as
            "classifier.weight".
        embeddings: Paths of the adapted embeddings; their lora_A is (r, vocabulary).
        base_weights: Weights of the base that the file repeats, by module path; they are
            compared with the base when the adapter is added to a model.
        base_model: Hub id or directory of the base, if known.
        convolutions: Channels, kernel and groups of adapted convolutions by module path; their
            lora_A is (r, in k), with k elements in a kernel.
        trained_tokens: Embeddings of trained tokens, (n, dim), by the path of their embedding or
            output layer, in the order of `config.trainable_token_indices`.
    """

    config: LoraConfig
    factors: Factors
    replaced: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    embeddings: frozenset[str] = frozenset()
    base_weights: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    base_model: str | None = None
    companions: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    convolutions: Convolutions = field(default_factory=dict[str, KernelShape])
    trained_tokens: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        """Freeze the mappings and compare the companions with the configuration.

        Raises:
            AdapterMismatchError: A companion is missing though its setting is on, or there is one
                though it is off.
        """
        freeze_fields(self)
        known = [variant.name for variant in with_companions()]
        unknown = [key for key in self.companions if key.rpartition(".")[2] not in known]
        if unknown:
            raise AdapterMismatchError(
                f"Companions of an adapter: got {first_few(unknown)}, expected paths that end in "
                f"{', '.join(f'.{name}' for name in known)}. Leave the others out."
            )
        for variant in with_companions():
            present = self.companions_of(variant.name)
            is_on = bool(getattr(self.config, variant.setting))
            odd = sorted(set(self.factors if is_on else ()) ^ present.keys())
            if odd:
                raise AdapterMismatchError(
                    f"{variant.name.capitalize()}s of an adapter with {variant.setting}={is_on}: "
                    f"got {'one' if odd[0] in present else 'none'} at {first_few(odd)}, expected "
                    f"{'one for each module with factors' if is_on else 'none'}. Give the "
                    "configuration that the tensors were trained with."
                )

    def companions_of(self, name: str) -> dict[str, Tensor]:
        """Return the companions of one name by module path."""
        keys = [key.rpartition(".") for key in self.companions]
        return {path: self.companions[f"{path}.{name}"] for path, _, last in keys if last == name}

    def in_names_of(self, model: nn.Module) -> Self:
        """Return the adapter with the names that a base's modules and parameters have.

        Raises:
            AdapterMismatchError: Two tensors would get one name, or the updates of experts cannot
                be stacked.
        """
        return in_names_of(model, self)

    @property
    def magnitudes(self) -> dict[str, Tensor]:
        """Trained norms of the rows of the updated weight (DoRA), (out,), by module path."""
        return self.companions_of("magnitude")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        allow_edited_config: bool = False,
    ) -> Self:
        """Read an adapter from a directory in PEFT's layout, or from the hub.

        Args:
            path: Directory with adapter_config.json and adapter_model.safetensors, or a hub id.
            revision: Branch, tag or commit of a hub repository; None takes the newest.
            subfolder: Folder inside the directory or repository that holds the adapter.
            token: Hub token for a private repository; None takes the token of the login.
            allow_pickle: Whether to read adapter_model.bin if there is no safetensors file; it may
                hold tensors only (`weights_only`).
            allow_edited_config: Whether settings of adapter_config.json that affect the update,
                such as lora_alpha, may have been edited since lorakit saved the adapter.

        Raises:
            MissingFileError: There is no such directory, or it holds no adapter.
            AdapterFileError: A file is damaged or uses a feature that lorakit does not support, or
                tensors and configuration contradict each other or are not from one save.
            ConfigError: A value of the configuration is out of range, or a revision is given for a
                local directory.
        """
        values, tensors, where, is_from_lorakit = read_adapter_files(
            path,
            allow_pickle=allow_pickle,
            allow_edited_config=allow_edited_config,
            revision=revision,
            subfolder=subfolder,
            token=token,
        )
        config = config_from_peft(values, where)
        keys = parse_keys(tensors, where, config.modules_to_save)
        factors, config = find_in_base(keys.factors, config, where)
        require_selected(factors, config, where)
        for module_path, (A, B) in factors.items():
            r = config.rank_for(module_path)
            if A.shape[-2] != r or B.shape[-1] != r:
                raise AdapterFileError(
                    f"Rank in {where} at {module_path}: lora_A is {tuple(A.shape)} and lora_B "
                    f"{tuple(B.shape)}, but the configuration says r={r}. The two files do not "
                    "belong together."
                )
            for variant in with_companions():
                is_on = bool(getattr(config, variant.setting))
                if is_on != (f"{module_path}.{variant.name}" in keys.companions):
                    raise AdapterFileError(
                        f"{variant.file_key} in {where} at {module_path}: got "
                        f"{'none' if is_on else 'one'}, but the configuration says "
                        f"{variant.setting}={is_on}. The two files do not belong together."
                    )
        check_trained_tokens(config, keys.trained_tokens, where)
        for variant in () if is_from_lorakit else variants_of(config):
            said = {p: variant.difference_in_peft(c.groups) for p, c in keys.convolutions.items()}
            other = {path: difference for path, difference in said.items() if difference}
            if other:
                warnings.warn(
                    f"{where} may give other outputs here than where it was trained: with "
                    f"{variant.setting} PEFT {next(iter(other.values()))} ({first_few(other, 2)}) "
                    "in another way. Train it again with lorakit.",
                    LorakitWarning,
                    stacklevel=2,
                )
        return cls(
            config,
            factors,
            keys.replaced,
            keys.embeddings,
            keys.base_weights,
            values.get("base_model_name_or_path"),
            keys.companions,
            keys.convolutions,
            keys.trained_tokens,
        )

    @classmethod
    def from_model(cls, model: nn.Module, name: str = "default") -> Self:
        """Copy an adapter out of a model.

        If the parameters are sharded, every process must call this, and gets whole tensors.

        Raises:
            AdapterNameError: There is no such adapter.
        """
        fields = carried_fields(model, name)
        pairs = fields["factors"].items()
        fields["factors"] = {path: (_copy_tensor(A), _copy_tensor(B)) for path, (A, B) in pairs}
        for kind in ("replaced", "companions", "trained_tokens"):
            fields[kind] = {key: _copy_tensor(tensor) for key, tensor in fields[kind].items()}
        return cls(**fields)

    def save(self, path: str | Path) -> list[Path]:
        """Write PEFT's two files atomically.

        A concurrent `load` reads the old adapter or the new one.

        Args:
            path: Directory to write to; created if necessary.

        Returns: The paths written.
        """
        return write_adapter_files(Path(path), *self._file_contents())

    def weights_file_bytes(self) -> int:
        """Return the size of the tensors file that `save` would write."""
        return weights_file_bytes(*self._file_contents())

    def _file_contents(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration's values and the tensors by key, as in PEFT's files."""
        factors, config = with_outputs_of_files(self.factors, self.config)
        config = with_patterns_of_files(factors, config)
        tensors = tensor_keys(
            factors,
            self.replaced,
            self.embeddings,
            self.base_weights,
            self.companions,
            self.convolutions,
            self.stacked,
            self.trained_tokens,
        )
        return config_to_peft(config, self.base_model), tensors

    @property
    def stacked(self) -> frozenset[str]:
        """Paths of the stacked parameters among `factors`."""
        return stacked_paths(self.factors, self.config)

    def delta_weight(self, path: str) -> Tensor:
        """Return s B A of one module in float32, (out, in).

        For an embedding it is (dim, vocabulary), for a convolution (out, in k), for stacked weights
        (experts, out, in).

        Raises:
            AdapterMismatchError: The adapter does not adapt that module, or its update depends on
                the base (DoRA, and PEFT's PiSSA and OLoRA).
        """
        if path not in self.factors:
            raise AdapterMismatchError(
                f"The adapter has no update for {path!r}. It adapts: {', '.join(self.factors)}."
            )
        dependent = base_dependent(self.config)
        if dependent is not None:
            raise AdapterMismatchError(
                f"The adapter's update of {path!r} depends on the base: got {dependent.title()}, "
                "expected an update that is simply added. Merge it into its base and subtract the "
                "weights."
            )
        if initialization_of(self.config.init_lora_weights).changes_base_in_peft:
            raise AdapterMismatchError(
                f"The adapter's update of {path!r} depends on the base: got init_lora_weights="
                f"{self.config.init_lora_weights!r}, expected an update that is simply added. "
                "Load it into its base and save it from there."
            )
        A, B = self.factors[path]
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.config.scaling_for(path) * (B.to(wide) @ A.to(wide))

    def count_parameters(self) -> int:
        """Return the number of trained parameters, including heads, biases and trained tokens."""
        lora = sum(A.numel() + B.numel() for A, B in self.factors.values())
        others = (*self.companions.values(), *self.replaced.values(), *self.trained_tokens.values())
        return lora + sum(tensor.numel() for tensor in others)


def _copy_tensor(tensor: Tensor) -> Tensor:
    return whole(tensor) if is_sharded(tensor) else tensor.clone()
