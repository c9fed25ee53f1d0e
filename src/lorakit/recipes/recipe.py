"""A recipe: one YAML file that describes a whole experiment."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from lorakit.config import Count, LoraConfig, QuantizationConfig, StrictConfig, TaskType
from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError, MissingFileError, did_you_mean, first_few
from lorakit.libraries.hub import is_hub_id
from lorakit.recipes import yaml_text
from lorakit.recipes.evaluation_section import EvaluationConfig
from lorakit.recipes.frozen_part_section import FrozenPartConfig
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.recipes.overrides import apply_overrides, section_at
from lorakit.recipes.search_sections import SearchConfig, StudyConfig

_MAY_BE_LEFT_BLANK = ("lora", "training", "evaluation")

_LONGEST_PATH, _LONGEST_NAME = 4095, 255
"""Limits of Linux in bytes."""

_OVERRIDES_SHOWN = 3


def _expand_home(value: str) -> str:
    """Expand a leading `~` in a path, as a shell does."""
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("there is no such home directory") from None


def _require_name(value: str) -> str:
    """Reject names that neither a file system nor the hub accepts."""
    if not value.isprintable():
        raise ValueError("expected a name without control characters")
    if len(os.fsencode(value)) > _LONGEST_PATH:
        raise ValueError(f"expected at most {_LONGEST_PATH:,} bytes")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in value.split("/")):
        raise ValueError(f"expected at most {_LONGEST_NAME} bytes between two slashes")
    return value


_NameOrPath = Annotated[
    str, Field(min_length=1), AfterValidator(_require_name), AfterValidator(_expand_home)
]


class DataConfig(StrictConfig):
    """The dataset, and the meaning of its columns."""

    train: _NameOrPath
    """Training examples: hub id, csv/json/jsonl/parquet file, or directory of a saved dataset."""

    validation: _NameOrPath | None = None
    """Validation examples, named like `train`; None takes the dataset's validation split, or holds
    out a share of `train`."""

    subset: str | None = None
    """Configuration of a hub dataset, such as "mrpc" of "glue"."""

    train_split: str = "train"
    """Split of the dataset with the training examples."""

    validation_split: str | None = None
    """None: the split "validation" if the dataset has one, else see `validation_fraction`."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of the training examples to use for validation if no validation data is given.

    0 uses none.
    """

    delimiter: str | None = None
    """Delimiter of a csv file; None detects a comma, semicolon, tab or vertical bar, whichever
    gives every line as many cells as the header."""

    format: Literal[
        "auto", "text", "prompt_completion", "messages", "alpaca", "preference", "votes"
    ] = "auto"
    """Layout of CAUSAL_LM examples, the last two for an `objective`; "auto" infers it."""

    text: str = "text"
    """Column of texts, for SEQ_CLS and plain CAUSAL_LM."""

    text_pair: str | None = None
    """Column of second texts, for SEQ_CLS on pairs; None reads single texts."""

    label: str = "label"
    """Column of labels, for SEQ_CLS; of votes (true or false, 1 or 0), for `objective` kto."""

    tokens: str = "tokens"
    """Column of lists of words, for TOKEN_CLS."""

    tags: str = "tags"
    """Column of lists of tags, one for each word, for TOKEN_CLS."""

    prompt: str = "prompt"
    """Column of prompts: texts, or messages that the completion's messages continue."""

    completion: str = "completion"
    """Column of completions: texts, or messages, of which the assistant's count in the loss."""

    chosen: str = "chosen"
    """Column of the better answers, for an `objective`: texts or messages. Without a column of
    prompts, what it and `rejected` begin with alike is the prompt."""

    rejected: str = "rejected"
    """Column of the worse answers, likewise."""

    messages: str = "messages"
    """Column of lists of messages, for CAUSAL_LM on chats."""

    source: str = "source"
    """Column of input texts, for SEQ_2_SEQ_LM."""

    target: str = "target"
    """Column of output texts, for SEQ_2_SEQ_LM."""

    source_prefix: str = ""
    """Prefix of every source text, as T5 expects ("summarize: ")."""

    new_tokens: tuple[str, ...] = ()
    """Strings to add to the vocabulary as single tokens. Their embeddings are added to the base,
    trained and saved with the adapter."""

    max_length: Count | None = None
    """Maximum input length in tokens; None takes the model's limit, at most 1024."""

    max_target_length: Count = 128
    """Maximum length of a SEQ_2_SEQ_LM target in tokens."""

    max_train_rows: Count | None = None
    """Largest number of training examples; None takes all."""

    max_validation_rows: Count | None = None
    """Largest number of validation examples; None takes all."""

    @field_validator("delimiter")
    @classmethod
    def _require_one_character(cls, value: str | None) -> str | None:
        value = "\t" if value in ("\\t", "tab") else value  # easier to type in a shell
        if value is not None and (len(value) != 1 or value in '"\r\n '):
            raise ValueError('expected one character such as ";", or "tab"')
        return value

    @field_validator("new_tokens")
    @classmethod
    def _require_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted(word for word, count in Counter(value).items() if count > 1)
        if repeated:
            raise ValueError(f"expected each string once, not {repeated} twice")
        blank = [word for word in value if not word or word != word.strip()]
        if blank:
            raise ValueError(f"expected strings without spaces around them, not {blank}")
        return value


class Recipe(StrictConfig):
    """Everything that defines a run; the same recipe gives the same adapter."""

    model: _NameOrPath
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
    """What preferences are trained with; None trains on examples of the right answer."""

    data: DataConfig
    """Where the examples come from."""

    start_from: _NameOrPath | None = None
    """Adapter to train on from: a run, an adapter or checkpoint directory, or a hub id. `lora:` is
    then that of the adapter, `r`, `lora_alpha` and `use_rslora` may differ, and `lora_dropout` and
    `freeze_lora_a` are free; None trains a new adapter."""

    lora: LoraConfig = LoraConfig()
    """What is adapted, and how."""

    quantization: QuantizationConfig | None = None
    """Quantisation of the base to 4 or 8 bits; None does not quantise it. With quantisation, dtype
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

    output: _NameOrPath
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
        return self

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
        data = {key: _absolute(getattr(self.data, key)) for key in ("train", "validation")}
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
    """Return the absolute path of a local file or directory; a hub id stays unchanged."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def require_recipe_file(path: str | Path) -> Path:
    """Return the path of an existing recipe.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The path is a directory, or not a valid file name.
    """
    try:
        _require_name(str(path))
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
