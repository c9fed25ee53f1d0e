"""A recipe: one YAML file that describes a whole experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import SerializerFunctionWrapHandler, field_serializer, model_validator

from lorakit.config import LoraConfig, QuantizationConfig, StrictConfig, TaskType
from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError, MissingFileError, did_you_mean, first_few
from lorakit.libraries.hub import is_hub_id
from lorakit.recipes import yaml_text
from lorakit.recipes.data_names import is_glob
from lorakit.recipes.data_section import DataConfig, NameOrPath, require_name
from lorakit.recipes.evaluation_section import EvaluationConfig
from lorakit.recipes.frozen_part_section import FrozenPartConfig
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.recipes.overrides import apply_overrides, section_at
from lorakit.recipes.search_sections import SearchConfig, StudyConfig

_MAY_BE_LEFT_BLANK = ("lora", "training", "evaluation")


_OVERRIDES_SHOWN = 3


class Recipe(StrictConfig):
    """Everything that defines a run; the same recipe gives the same adapter."""

    model: NameOrPath
    """Hub id or local directory of the base model."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""

    dtype: Literal["saved", "auto", "float32", "bfloat16", "float16"] = "saved"
    """Dtype of the base weights; "saved" keeps the checkpoint's. "auto" chooses float32 or bfloat16
    when a run starts, whichever this device trains faster, and writes the choice to the run's
    recipe.yaml."""

    task: TaskType
    """What the model is trained to do."""

    objective: ObjectiveConfig | None = None
    """How to train on preferences; None trains on examples of the right answer."""

    data: DataConfig
    """Where the examples come from."""

    start_from: NameOrPath | None = None
    """Adapter to train on from: a run, an adapter or checkpoint directory, or a hub id. `lora:` is
    then that of the adapter, `r`, `lora_alpha` and `use_rslora` may differ, and `lora_dropout` and
    `freeze_lora_a` are free; None trains a new adapter."""

    lora: LoraConfig = LoraConfig()
    """What is adapted, and how."""

    quantization: QuantizationConfig | None = None
    """Quantization of the base to 4 or 8 bits; None does not quantize it. With quantization, dtype
    "saved" or "auto" is the compute dtype."""

    float32_small_parameters: bool = False
    """Whether to keep 1-D parameters (norms, biases) in float32 on a 16-bit base."""

    frozen_part: FrozenPartConfig = FrozenPartConfig()
    """How the blocks below the first adapted one are computed."""

    training: dict[str, Any] = {}
    """Any field of the task's training arguments, `early_stopping_patience` (evaluations without
    progress before training stops), `early_stopping_threshold`, and `lora_plus_ratio` (LoRA+:
    factor of the learning rate of lora_B)."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured at the end of a run."""

    search: SearchConfig | None = None
    """Search space and method of `lorakit tune`; None takes the defaults."""

    study: StudyConfig | None = None
    """Grid of `lorakit study`; None takes the defaults."""

    output: NameOrPath
    """Run directory; it must not hold a run yet."""

    @model_validator(mode="after")
    def _require_one_task(self) -> Self:
        if self.lora.task_type not in (None, self.task):
            raise ValueError(
                f"lora.task_type is {self.lora.task_type} but task is {self.task}; "
                "leave lora.task_type out"
            )
        if self.objective is not None and self.objective.task != self.task:
            raise ValueError(
                f"objective.type is {self.objective.type} but task is {self.task}; "
                f"set task: {self.objective.task}"
            )
        self.data.require_keys_of(self.task, self.objective is not None)
        if self.data.streaming:
            self._require_streamable()
        return self

    def _require_streamable(self) -> None:
        """Refuse what needs all training examples before the first step."""
        given: Any = self.training  # while the section is validated, an object
        training: dict[str, Any] = (
            cast(dict[str, Any], given)
            if isinstance(given, dict)
            else given.model_dump(exclude_unset=True)
        )
        if not (training.get("max_steps") or 0) > 0:
            raise ValueError(
                "data.streaming=true needs training.max_steps, as a stream has no end; set it, or "
                "leave data.streaming out"
            )
        needs_all: dict[str, Any] = {
            f"task {self.task}": self.task is not TaskType.CAUSAL_LM and self.objective is None,
            "data.max_train_rows": self.data.max_train_rows is not None,
            "training.packing": training.get("packing"),
            "training.train_sampling_strategy=group_by_length": (
                training.get("train_sampling_strategy") == "group_by_length"
            ),
            "training.dataloader_num_workers": training.get("dataloader_num_workers"),
            "search": self.search is not None,
            "study": self.study is not None,
        }
        refused = [name for name, is_given in needs_all.items() if is_given]
        if refused:
            raise ValueError(
                f"data.streaming=true cannot go with {' and '.join(refused)}; leave one of them out"
            )

    @field_serializer("lora", mode="wrap")
    def _dump_lora(self, lora: LoraConfig, dump: SerializerFunctionWrapHandler) -> Any:
        """Leave out what is not given where an adapter gives it."""
        values = dump(lora)
        if self.start_from is None:
            return values
        return {key: value for key, value in values.items() if key in lora.model_fields_set}

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a recipe and validate it, including the training arguments.

        Args:
            path: The YAML file.
            overrides: Dotted overrides, such as "lora.r=16"; values are YAML.

        Raises:
            MissingFileError: The file does not exist.
            ConfigError: Lists every problem of the file and the overrides.
        """
        path = require_recipe_file(path)
        values = yaml_text.read_mapping(path)
        where = str(path)
        if overrides:
            apply_overrides(overrides, values)
            where += (
                f" with {first_few([short_repr(o)[1:-1] for o in overrides], _OVERRIDES_SHOWN)}"
            )
        return cls.check(values, where)

    @classmethod
    def check(cls, values: dict[str, Any], where: str) -> Self:
        """Validate a mapping, including the training arguments, and return the recipe.

        Args:
            values: The mapping as parsed from YAML.
            where: Its origin for error messages.

        Raises:
            ConfigError: Lists every problem.
        """
        blank = [key for key in _MAY_BE_LEFT_BLANK if key in values and values[key] is None]
        values = {key: value for key, value in values.items() if key not in blank}
        if values.get("task") not in list(TaskType):
            return cls.parse(values, where)  # reports the task; its arguments cannot be known
        from lorakit.recipes.training_section import validate_training_section

        training = validate_training_section(cls, values, where)
        return cls.parse({**values, "training": training}, where)

    def with_changes(self, changes: Mapping[str, Any], where: str) -> Self:
        """Return the recipe with new values for some dotted keys, validated as a whole.

        Args:
            changes: Values as parsed from YAML, by keys such as "lora.r".
            where: Origin of the changes for error messages.

        Raises:
            ConfigError: Lists every problem.
        """
        values = self.model_dump(mode="json")
        for key, value in changes.items():
            parts = key.split(".")
            section, blocked = section_at(values, parts)
            if blocked is not None:
                raise ConfigError(
                    f"In {where}: got '{key}', but {blocked} is a value, not a section."
                )
            section[parts[-1]] = value
        return self.check(values, where)

    def with_precision_of(self, other: "Recipe") -> Self:
        """Return the recipe with the dtype of another, and its `training.bf16`."""
        bf16 = {"bf16": other.training["bf16"]} if "bf16" in other.training else {}
        return self.model_copy(update={"dtype": other.dtype, "training": {**self.training, **bf16}})

    def with_absolute_paths(self) -> Self:
        """Return the recipe with absolute paths of local models, adapters and data."""
        data = {
            "train": _absolute_sources(self.data),
            "validation": _absolute(self.data.validation),
        }
        changes: dict[str, Any] = {"data": self.data.model_copy(update=data)}
        changes["model"] = _absolute(self.model)
        if self.start_from is not None and not is_hub_id(self.start_from):
            changes["start_from"] = str(Path(self.start_from).absolute())  # it may be gone by now
        return self.model_copy(update=changes)

    def to_yaml(self) -> str:
        """Return the recipe as YAML; `Recipe.load` reads it back to an equal recipe."""
        return yaml_text.to_text(self.model_dump(mode="json"))


def load_written_recipe(path: Path) -> Recipe:
    """Read a recipe that a run or a search wrote, whose dtype is chosen.

    Versions that did not choose wrote "auto" for the checkpoint's dtype.
    """
    recipe = Recipe.load(path)
    return recipe.model_copy(update={"dtype": "saved"}) if recipe.dtype == "auto" else recipe


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ, sorted.

    >>> data = {"train": "a.csv"}
    >>> old = Recipe(model="m", task="SEQ_CLS", data=data, output="runs/a")
    >>> new = Recipe(model="m", task="SEQ_CLS", data=data, lora={"r": 4}, output="runs/a")
    >>> changed_keys(old, new)
    ['lora.r']
    """
    flat_old, flat_new = (_flatten(recipe.model_dump(mode="json")) for recipe in (old, new))
    missing = object()
    return sorted(
        key
        for key in flat_old.keys() | flat_new.keys()
        if flat_old.get(key, missing) != flat_new.get(key, missing)
    )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(cast(dict[str, Any], value), f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _absolute(name: str | None) -> str | None:
    """Return the absolute path of local files or a directory; a hub id stays unchanged."""
    is_there = name is not None and (Path(name).exists() or is_glob(name))
    return str(Path(name).absolute()) if name is not None and is_there else name


def _absolute_sources(data: DataConfig) -> Any:
    if isinstance(data.train, str):
        return _absolute(data.train)
    paths = [
        _absolute(one.path) if isinstance(one.path, str) else tuple(map(_absolute, one.path))
        for one in data.train
    ]
    return tuple(
        one.model_copy(update={"path": path}) for one, path in zip(data.train, paths, strict=True)
    )


def require_recipe_file(path: str | Path) -> Path:
    """Return the path of an existing recipe.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The path is a directory, or not a valid file name.
    """
    try:
        require_name(str(path))
    except ValueError as error:
        raise ConfigError(
            f"Cannot read the recipe {short_repr(str(path))}: {error}. Check the name."
        ) from None
    path = Path(path)
    if path.is_dir():
        raise ConfigError(
            f"Cannot read the recipe {path}: it is a directory, expected a YAML file. "
            f"A run keeps its recipe in {path / 'recipe.yaml'}."
        )
    if not path.exists():
        folder = path.parent
        near = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        hint = did_you_mean(path.name, near) or " `lorakit init` writes one."
        raise MissingFileError(f"No recipe {path}: the file does not exist.{hint}")
    return path
