"""The adapter as a value: a configuration and tensors by module path, with no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lorakit.adapters.convolutions import Convolutions
from lorakit.adapters.files import read_adapter_files, write_adapter_files
from lorakit.adapters.peft_format import (
    config_from_peft,
    config_to_peft,
    parse_keys,
    tensor_keys,
)
from lorakit.adapters.ranks import Factors
from lorakit.adapters.sharded import is_sharded, whole
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, AdapterMismatchError


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
        convolutions: Channels, kernel and groups of adapted convolutions by module path; their
            lora_A is (r, in k), with k elements in a kernel.
    """

    config: LoraConfig
    factors: Factors
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: frozenset[str] = frozenset()
    base_weights: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    convolutions: Convolutions = field(default_factory=dict)

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
            keys.convolutions,
        )

    @classmethod
    def from_model(cls, model: nn.Module, name: str = "default") -> Self:
        """Copy an adapter out of a model.

        Where the parameters are sharded, every process has to call it, and gets the whole.

        Raises:
            AdapterNameError: There is no such adapter.
        """
        from lorakit.adapters.carried import view_of

        view = view_of(model, name)
        return cls(
            view.config,
            {path: (_copied(A), _copied(B)) for path, (A, B) in view.factors.items()},
            {key: _copied(tensor) for key, tensor in view.replaced.items()},
            view.embeddings,
            {},
            view.base_model,
            {path: _copied(magnitude) for path, magnitude in view.magnitudes.items()},
            view.convolutions,
        )

    def save(self, path: str | Path) -> list[Path]:
        """Write PEFT's two files, each whole or not at all.

        Args:
            path: Directory to write to; made if need be.

        Returns: The paths written.
        """
        tensors = tensor_keys(
            self.factors,
            self.replaced,
            self.embeddings,
            self.base_weights,
            self.magnitudes,
            self.convolutions,
        )
        values = config_to_peft(self.config, self.base_model)
        return write_adapter_files(Path(path), values, tensors)

    def delta_weight(self, path: str) -> Tensor:
        """Return s B A of one module in float32, (out, in).

        It is (dim, vocabulary) for an embedding, and (out, in k) for a convolution.

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
