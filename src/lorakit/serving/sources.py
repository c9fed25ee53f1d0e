"""What a server is asked to serve: a base, runs, adapters by name, a folder of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.config import QuantizationConfig
from lorakit.errors import ConfigError, LorakitError, MissingFileError, first_few
from lorakit.inference.loaded import require_weights_of_training
from lorakit.libraries.hub import fetch_from_hub, is_hub_id
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import find_adapter
from lorakit.serving.base_models import (
    BaseSource,
    ModelKind,
    kind_of_base,
    needs_adapter,
    same_place,
)
from lorakit.serving.store import AdapterPlaces
from lorakit.serving.store.adapter_directory import AdapterFacts, read_facts

_HUB_FILES = ("*.json", "adapter_model.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class KindNeeds:
    """What the adapters of one kind need of the base when it is loaded."""

    labels: tuple[str, ...] | None = None
    trained_in_full: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServingSource:
    """Everything that a server serves.

    Attributes:
        base: The base.
        base_name: Name of the base alone.
        places: Where the adapters are.
        kinds: The kinds to load at once.
    """

    base: BaseSource
    base_name: str
    places: AdapterPlaces
    kinds: Mapping[ModelKind, KindNeeds] = field(default_factory=dict[ModelKind, KindNeeds])


def needs_of(adapter: AdapterFacts) -> KindNeeds:
    """Return what an adapter needs of the base of its kind."""
    return KindNeeds(adapter.settings.labels, adapter.trained_in_full)


def find_source(
    models: Sequence[str | Path],
    *,
    adapters: Mapping[str, str | Path] | None = None,
    folder: str | Path | None = None,
    root: str | Path | None = None,
    base_name: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    unquantized: bool = False,
    trust_remote_code: bool = False,
) -> ServingSource:
    """Find out what to serve; takes arguments of `lorakit.serve`.

    The recipes of runs may allow code that comes with the base or a tokenizer, too.

    Raises:
        ConfigError: There is nothing to serve, a name is used twice, or the adapters need
            different bases.
        MissingFileError: A path does not exist.
        AdapterFileError: A file of a named adapter is damaged.
        AdapterMismatchError: The base of a named adapter has other weights than in its training.
    """
    base, named, recipes = _sort_out(models, adapters or {})
    place = None if folder is None else Path(folder)
    if place is not None and not place.is_dir():
        raise MissingFileError(
            f"No folder of adapters at {place}: expected a directory. Create it, or check the path."
        )
    needs = {name: read_facts(path) for name, path in named.items()}
    of_named = dict(needs)
    needs |= {name: found for name, found in _in_folder(place).items() if name not in needs}
    source = _base_source(base, needs, recipes, dtype, unquantized)
    source = replace(
        source, device=device, trust_remote_code=trust_remote_code or source.trust_remote_code
    )
    for name, each in of_named.items():
        if each.base is not None and source.is_named(each.base):
            file = named[name] / CONFIG_FILE
            require_weights_of_training(each.settings, source.name, source.revision, file)
    kinds: dict[ModelKind, KindNeeds] = {}
    for each in needs.values():
        if each.kind is not None:
            known = kinds.get(each.kind, KindNeeds())
            replaced = dict.fromkeys((*known.trained_in_full, *each.trained_in_full))
            kinds[each.kind] = KindNeeds(known.labels or each.settings.labels, tuple(replaced))
    if not kinds or (base is not None and not needs_adapter(source)):
        kinds.setdefault(kind_of_base(source), KindNeeds())
    is_here = os.path.isdir(source.name)
    short_name = Path(source.name).absolute().name if is_here else source.name
    return ServingSource(
        source,
        base_name or short_name,
        AdapterPlaces(place, named, place if root is None else Path(root)),
        kinds,
    )


def _sort_out(
    models: Sequence[str | Path], adapters: Mapping[str, str | Path]
) -> tuple[str | None, dict[str, Path], list[Recipe]]:
    """Return the base if one is named, the directories of adapters by name, and their recipes."""
    bases = [str(each) for each in models if not _is_adapter(each)]
    given = [(_name_of(Path(each)), each) for each in models if _is_adapter(each)]
    if len(bases) > 1 or (bases and given):
        raise ConfigError(
            f"Cannot serve {first_few(map(str, models))} together: got {len(bases)} of them "
            "without an adapter, expected one base alone, or runs and adapters alone. Name the "
            "base, and the adapters with --adapter NAME=PATH."
        )
    for base in bases:
        _require_no_folder_of_runs(Path(base))
    named: dict[str, Path] = {}
    recipes: list[Recipe] = []
    for name, path in [*given, *adapters.items()]:
        if name in named:
            raise ConfigError(
                f"Two adapters are named '{name}': got {named[name]} and {path}, expected "
                "different names. Name one of them with --adapter NAME=PATH."
            )
        directory, recipe = _locate(path)
        named[name] = directory
        recipes += [] if recipe is None else [recipe]
    return (bases[0] if bases else None), named, recipes


def _require_no_folder_of_runs(base: Path) -> None:
    if not base.is_dir() or (base / "config.json").is_file():
        return
    inside = [str(each) for each in sorted(base.iterdir()) if _is_adapter(each)]
    if inside:
        raise MissingFileError(
            f"No base and no run at {base}: got a directory with runs or adapters inside, expected "
            f"one of these. Name {first_few(inside)}, or serve them all with --adapters {base}."
        )


def _is_adapter(path: str | Path) -> bool:
    place = Path(path)
    names = ("adapter_config.json", "recipe.yaml", "adapter/adapter_config.json")
    return place.is_dir() and any((place / name).is_file() for name in names)


def _locate(path: str | Path) -> tuple[Path, Recipe | None]:
    if is_hub_id(path):
        return fetch_from_hub(str(path), _HUB_FILES), None
    place = Path(path)
    inner = place / "adapter"
    has_inner = (inner / "adapter_config.json").is_file()
    is_bare = has_inner and not (place / "recipe.yaml").is_file()
    return find_adapter(inner if is_bare else place)


def _name_of(path: Path) -> str:
    """Return the name of a run or an adapter directory.

    >>> _name_of(Path("runs/german")), _name_of(Path("runs/german/adapter"))
    ('german', 'german')
    >>> _name_of(Path("runs/german/checkpoint-20"))
    'german-checkpoint-20'
    """
    path = path.absolute()
    if path.name == "adapter":
        return path.parent.name
    if path.name.startswith("checkpoint-"):
        return f"{path.parent.name}-{path.name}"
    return path.name


def _in_folder(folder: Path | None) -> dict[str, AdapterFacts]:
    """Return the needs of the adapters in a folder that can be read; the store tells of others."""
    found: dict[str, AdapterFacts] = {}
    for path in sorted(folder.iterdir()) if folder is not None else ():
        if _is_adapter(path):
            try:
                found[path.name] = read_facts(_locate(path)[0])
            except LorakitError:
                continue
    return found


def _base_source(
    base: str | None,
    needs: Mapping[str, AdapterFacts],
    recipes: Sequence[Recipe],
    dtype: str | None,
    unquantized: bool,
) -> BaseSource:
    name = base or _common_value(
        "base model",
        {adapter: each.base for adapter, each in needs.items()},
        "Start one server for each base, or name the base.",
        key=same_place,
    )
    if name is None:
        raise ConfigError(
            "Nothing to serve: got no base, expected the directory or hub id of one, or runs whose "
            "adapters name it. Try `lorakit serve RUN`."
        )
    settings = {adapter: each.settings for adapter, each in needs.items()}
    quantization: QuantizationConfig | None = None
    if not unquantized:
        quantization = _common_value(
            "quantization of the base in training",
            {n: one.quantization or "none" for n, one in settings.items() if one.task_type},
            "Add --unquantized to load the base as it is saved.",
            key=repr,
        )
        quantization = quantization if isinstance(quantization, QuantizationConfig) else None
    if dtype is None:
        dtype = _common_value(
            "dtype of the base in training",
            {n: one.dtype for n, one in settings.items()},
            "Choose one with --dtype.",
        )
    elif quantization is not None:
        quantization = quantization.model_copy(update={"compute_dtype": dtype})
    of_runs = [] if base is not None else recipes
    revisions = {recipe.revision for recipe in of_runs}
    if len(revisions) > 1:
        raise ConfigError(
            f"The runs need different revisions of {name}: got {sorted(map(str, revisions))}, "
            "expected one. Start one server for each."
        )
    return BaseSource(
        name,
        key="BASE" if base is not None else "base_model_name_or_path of the adapters",
        dtype=dtype or "auto",
        quantization=quantization,
        revision=next(iter(revisions), None),
        seed=next((one.seed for one in settings.values()), 42),
        trust_remote_code=any(recipe.trust_remote_code for recipe in of_runs),
    )


def _common_value(what: str, values: Mapping[str, Any], step: str, key: Any = None) -> Any:
    """Return the one value that adapters have in common, without those that have None."""
    by_key: dict[Any, str] = {}
    for adapter, value in values.items():
        if value is not None:
            by_key.setdefault(key(value) if key is not None else value, adapter)
    owners = list(by_key.values())
    if len(owners) > 1:
        shown = first_few((f"{values[owner]} ({owner})" for owner in owners), most=4)
        raise ConfigError(
            f"The adapters cannot share one base: they differ in the {what}, got {shown}, "
            f"expected one value. {step}"
        )
    return values[owners[0]] if owners else None
