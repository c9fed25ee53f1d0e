"""The adapter that a run trains on from: read, compared with the recipe, put on the base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapters import Adapter, Resize, fit_vocabulary, grow_vocabulary
from lorakit.adapters.formats.companions import copy_companions
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import Ancestor, Lineage, adapter_sha256
from lorakit.adapters.operations.reparametrize import outline_of, reparametrize_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.config import LoraConfig
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    ConfigError,
    LorakitError,
    MissingFileError,
    first_few,
)
from lorakit.inference.loaded import companions_of, locate_adapter, saved_tokenizer
from lorakit.injection import Injection, add_adapter
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.injection.state import base_modules
from lorakit.libraries.hub import is_hub_id
from lorakit.models.base_digest import base_digest
from lorakit.recipes.recipe import Recipe
from lorakit.training.starting_point.config_to_train import config_to_train
from lorakit.training.starting_point.differences import (
    check_task,
    quantization_notes,
    training_notes,
)
from lorakit.training.starting_point.same_selection import require_same_selection

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StartingPoint:
    """The adapter of `start_from`, and what the recipe makes of it.

    Attributes:
        name: Path or hub id in the recipe.
        directory: Directory of its files.
        parent: The adapter as its file has it.
        config: Configuration that the run trains; what it does not change is the parent's.
        selection: Settings of the recipe that select modules in other words than the parent's.
        settings: The parent's `lorakit.json`.
        tokenizer: Directory of its tokenizer; None if it has none, so that the base's is used.
        sha256: SHA-256 of its tensors file.
        about: Notes on how the parent and the recipe differ, one sentence each.
    """

    name: str
    directory: Path
    parent: Adapter
    config: LoraConfig
    selection: Mapping[str, Any]
    settings: InferenceSettings
    tokenizer: Path | None
    sha256: str
    about: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, kept: Path | None = None) -> StartingPoint | None:
        """Read the adapter that a recipe starts from.

        Args:
            recipe: The recipe.
            kept: Directory of the copy that a run keeps; used if it exists.

        Returns: None if the recipe starts from none.

        Raises:
            MissingFileError: There is no such adapter.
            AdapterFileError: It is damaged.
            ConfigError: The recipe contradicts it; names every key.
        """
        if recipe.start_from is None:
            return None
        name = recipe.start_from
        directory, first_recipe = _locate(name, kept)
        parent = Adapter.load(directory)
        companions = companions_of(directory)
        settings = InferenceSettings.load(companions)
        check_task(recipe, parent, settings)
        config, selection = config_to_train(recipe, parent)
        was_loftq = first_recipe is not None and first_recipe.lora.init_lora_weights == "loftq"
        return cls(
            name=name,
            directory=directory,
            parent=parent,
            config=config,
            selection=selection,
            settings=settings,
            tokenizer=saved_tokenizer(directory),
            sha256=adapter_sha256(directory),
            about=(
                *quantization_notes(recipe, settings, was_loftq),
                *training_notes(recipe, companions, first_recipe),
            ),
        )

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The parent's class or tag names by id, for tasks that have them."""
        return self.settings.labels

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """The parent and its parents, as far as they are recorded."""
        return (self.settings.lineage or Lineage()).add_parent(self.name, self.sha256)

    @cached_property
    def fitted(self) -> Resize:
        """The adapter with the run's ranks and scalings.

        Raises:
            ConfigError: The parent cannot have them.
        """
        try:
            return reparametrize_adapter(self.parent, self.config)
        except LorakitError as error:
            raise ConfigError(
                f"Cannot give the adapter of start_from '{self.name}' the lora section of the "
                f"recipe: {error} Leave lora.r, lora.lora_alpha and their like out to train it as "
                "it is."
            ) from error

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run starts from, and what differs from it, one sentence each."""
        first = f"Training starts from the adapter of {self.name} (sha256 {self.sha256[:12]})."
        old, new = self.parent.config, self.config
        changed = [p for p in self.parent.factors if old.rank_for(p) != new.rank_for(p)]
        if changed:
            ranks = {(old.rank_for(p), new.rank_for(p)): None for p in changed}
            said = first_few(f"{before} to {after}" for before, after in ranks)
            lost = f", which loses {self.fitted.error:.2%} of its updates"
            first += f" Its rank is changed from {said}{lost if self.fitted.error else ''}."
        if any(old.scaling_for(p) != new.scaling_for(p) for p in self.parent.factors):
            first += " Its scaling is changed, and lora_B makes up for it."
        return (first, *self.about)

    def resolve(self, recipe: Recipe) -> Recipe:
        """Return a recipe whose `lora:` section is the one that is trained, in full."""
        return recipe.model_copy(update={"lora": LoraConfig(**self.config.model_dump())})

    def attach(
        self, model: nn.Module, recipe: Recipe, name: str = "default", *, trainable: bool = True
    ) -> Injection:
        """Put the adapter on the base; its notes come first in the result.

        A second call with another name and `trainable=False` adds the parent as it is before
        training, such as the reference of a preference loss.

        Args:
            model: The base of the recipe.
            recipe: The recipe.
            name: Name of the adapter.
            trainable: Whether it is trained.

        Raises:
            AdapterMismatchError: It was trained on another base; names the first tensor that does
                not fit, with both shapes.
            ConfigError: The recipe selects other modules than the adapter has.
        """
        adapter = self.fitted.adapter
        if adapter.config.task_type is None:
            config = adapter.config.model_copy(update={"task_type": recipe.task})
            adapter = replace(adapter, config=config)
        with self._naming_the_base(recipe):
            fit_vocabulary(model, adapter)
            require_same_selection(model, adapter, self.selection, self.name)
            injection = add_adapter(model, adapter, name, trainable=trainable)
        return replace(injection, notes=(*self.notes, *self.compare_base(recipe), *injection.notes))

    def attach_outline(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        """Put an adapter of the same shapes on a base, both on fake tensors, for a plan.

        Raises:
            AdapterMismatchError, ConfigError: As `attach` raises; it does not compare the weights.
        """
        outline = outline_of(self.parent, self.config, device)
        with self._naming_the_base(recipe):
            needed, there = rows_needed(model, dict(base_modules(model)), outline)
            if needed > there:  # new rows have no values to follow
                grow_vocabulary(model, needed, follows_the_old=False)
            require_same_selection(model, outline, self.selection, self.name)
            add_adapter(model, outline)

    @contextmanager
    def _naming_the_base(self, recipe: Recipe) -> Iterator[None]:
        """Name adapter and base in an error of tensors that do not fit."""
        try:
            yield
        except AdapterMismatchError as error:
            base = self.parent.base_model
            named = f", and names '{base}'" if base else ""
            raise AdapterMismatchError(
                f"The adapter of start_from '{self.name}' does not fit model '{recipe.model}'"
                f"{named}: {error}"
            ) from error

    def check_new_tokens(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse tokens in `data.new_tokens` that the adapter does not have.

        Raises:
            ConfigError: Names them.
        """
        vocabulary = tokenizer.get_vocab()
        indices = self.config.trainable_token_indices or ()
        listed = indices.values() if isinstance(indices, Mapping) else [indices]
        trained = {index for some in listed for index in some}
        other = [
            word
            for word in recipe.data.new_tokens
            if word not in vocabulary or (trained and vocabulary[word] not in trained)
        ]
        if other:
            raise ConfigError(
                f"New tokens in data.new_tokens: got {other}, which the adapter of start_from "
                f"'{self.name}' does not train, expected only tokens that it has. Leave them out, "
                "or train a new adapter with them."
            )

    def copy_to(self, directory: Path) -> None:
        """Copy the adapter's files, so that the run no longer needs the parent.

        Raises:
            AdapterFileError: The parent has changed since it was read.
        """
        directory.mkdir()
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(self.directory / file, directory / file)
        copy_companions(companions_of(self.directory), directory)
        if adapter_sha256(directory) != self.sha256:
            raise AdapterFileError(
                f"The adapter of start_from '{self.name}' changed while the run was prepared: got "
                "another tensors file, expected the one that was read. Start the run again."
            )

    def changed_note(self) -> str | None:
        """Return a note if a run continues from its copy of a parent that is not the same now."""
        if is_hub_id(self.name):
            return None
        try:
            directory, _ = locate_adapter(self.name)
            same = adapter_sha256(directory) == self.sha256
        except (MissingFileError, OSError):
            return f"start_from '{self.name}' no longer exists; the run has a copy of it."
        if same:
            return None
        return (
            f"start_from '{self.name}' has changed since the run started; the run goes on from its "
            "copy of the former one."
        )

    def compare_base(self, recipe: Recipe) -> list[str]:
        """Return a note if the parent's base may be another one.

        Raises:
            AdapterMismatchError: Its weights are others.
        """
        recorded = None if self.settings.lineage is None else self.settings.lineage.base_digest
        digest = base_digest(recipe.model, recipe.revision)
        named = self.parent.base_model
        if recorded is not None and digest is not None:
            if recorded == digest:
                return []
            raise AdapterMismatchError(
                f"The adapter of start_from '{self.name}' was trained on other weights than those "
                f"of model '{recipe.model}': got the digest {digest[:12]}, expected "
                f"{recorded[:12]} as of '{named}'. Name that base in model, or train a new adapter."
            )
        if named is None or _same_place(named, recipe.model):
            return []
        return [
            f"The adapter names the base '{named}' and the recipe '{recipe.model}'; their shapes "
            "are the same, but whether their weights are is not recorded."
        ]


def _locate(name: str, kept: Path | None) -> tuple[Path, Recipe | None]:
    if kept is not None and (kept / CONFIG_FILE).is_file():
        return kept, None
    try:
        return locate_adapter(name)
    except MissingFileError as error:
        raise MissingFileError(f"Cannot start from start_from '{name}': {error}") from error


def _same_place(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()
