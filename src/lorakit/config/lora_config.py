"""Configurations: frozen, strict, with PEFT's field names and meanings."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lorakit.config.frozen import freeze_fields
from lorakit.config.initialization_names import (
    SETTINGS_OF,
    check_initialization,
    require_settings_of,
)
from lorakit.config.patterns import match_pattern, pattern_problem
from lorakit.config.problems import config_error, short_repr

NOT_COUNTED = -100
"""Label of a token that does not count in the loss; the default of torch's cross entropy."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the head of a text classifier predicts; the names are those of transformers' configs."""

SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

TokenIndices = tuple[int, ...] | dict[str, tuple[int, ...]] | None


class TaskType(StrEnum):
    """What the adapted model is trained to do; the values are PEFT's."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"


class _StrictMeta(type(BaseModel)):
    """Turns pydantic's ValidationError into a ConfigError when a config is constructed."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            model = cast(type[BaseModel], cls)
            raise config_error(error, model, model.__name__) from None


class StrictConfig(BaseModel, metaclass=_StrictMeta):
    """A frozen pydantic model that forbids unknown keys and reports all problems at once.

    Its dictionaries and lists are immutable, too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def model_post_init(self, context: Any) -> None:
        """Make the dictionaries and lists in the fields immutable."""
        freeze_fields(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with updated values, which are frozen but not validated."""
        copied = super().model_copy(update=update, deep=deep)
        freeze_fields(copied)
        return copied

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate a mapping read from a file.

        Args:
            values: The mapping as parsed from YAML or JSON.
            where: Its origin for error messages, such as the file's path.

        Raises:
            ConfigError: Lists every unknown key (with the closest known one) and every bad value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise config_error(error, cls, where) from None


def reject_bool(value: Any) -> Any:
    """Reject booleans, which Python would take for 0 and 1 (`r: true` would mean rank 1)."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


_MOST = 2**31 - 1
"""Largest integer that the underlying libraries take (int32)."""
_MOST_SCALING = 3.4e38
"""Largest finite float32, rounded down."""

Count = Annotated[int, BeforeValidator(reject_bool), Field(ge=1, le=_MOST)]
Rank = Count
Index = Annotated[int, BeforeValidator(reject_bool), Field(le=_MOST)]
Alpha = Annotated[float, BeforeValidator(reject_bool), Field(gt=0, allow_inf_nan=False)]


class LoraConfig(StrictConfig):
    """LoRA configuration, with PEFT's names, defaults and meanings.

    Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """

    r: Rank = 8
    """Rank of the update: rows of lora_A and columns of lora_B."""

    lora_alpha: Alpha = 8
    """Numerator of the scaling lora_alpha / r."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input element on the low-rank path."""

    target_parameters: tuple[str, ...] = ()
    """Names of parameters to adapt that are not layers: the stacked weights of experts, such as
    "mlp.experts.gate_up_proj". Matched like the names in `target_modules`, in addition to them."""

    target_modules: str | tuple[str, ...] | None = None
    """Modules to adapt: names (the module's path equals one or ends in "." + one), a regex that
    matches the whole path, or "all-linear" (also None): every linear layer except the output head,
    including both projections of nn.MultiheadAttention. Naming such an attention adapts both. May
    be empty if `target_parameters` is given."""

    exclude_modules: str | tuple[str, ...] | None = None
    """Modules to exclude: names, or a regex that matches the whole path. Each must match."""

    layers_to_transform: tuple[Index, ...] | None = None
    """Indices of the layers to adapt, from 0; None adapts all."""

    layers_pattern: str | tuple[str, ...] | None = None
    """Name of the module list that `layers_to_transform` indexes; None matches any list."""

    rank_pattern: dict[str, Rank] = {}
    """Rank by module name or regex (matched at the end of the path); overrides `r`."""

    alpha_pattern: dict[str, Alpha] = {}
    """lora_alpha by module name or regex; overrides `lora_alpha`."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases to train: none, all of the model's, or those of adapted layers."""

    modules_to_save: tuple[str, ...] = ()
    """Names of modules to train in full and save with the adapter. The task heads of SEQ_CLS and
    TOKEN_CLS models are always included."""

    trainable_token_indices: tuple[Index, ...] | dict[str, tuple[Index, ...]] | None = None
    """Tokens whose embeddings are trained in full: indices for the input embedding and everything
    tied to it, or indices by name of the embedding or output layer. None trains none."""

    task_type: TaskType | None = None
    """What the model is trained to do; determines which heads are trained."""

    init_lora_weights: bool | str = True
    """Initialization of the factors.

    True: A Kaiming-uniform (a = sqrt 5), B zero; "gaussian": A normal with standard deviation 1/r,
    B zero; "orthogonal": both random with B A = 0, for an even rank; False: both random, so that
    the update is not zero (for tests).

    From the base's weight: "pissa" (its largest singular values; arXiv:2404.02948), "pissa_niter_4"
    (the same by a fast randomised SVD with 4 iterations), "olora" (its QR decomposition;
    arXiv:2406.01775), "loftq" (its quantization error; arXiv:2310.08659). From training data:
    "eva" (principal components of the inputs; arXiv:2410.07170), "lora_ga" (singular vectors of the
    gradient; arXiv:2407.05000). The base weight never changes: with "pissa", "olora" and "lora_ga"
    the update is s (B A - B0 A0), which is zero before training."""

    eva_rho: float = Field(2.0, ge=1, allow_inf_nan=False)
    """For "eva": largest rank of a layer as a multiple of its configured rank; 1 keeps all ranks
    as configured."""

    init_batches: Count = 8
    """Number of batches used for "eva" and "lora_ga" in training."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r."""

    use_dora: bool = False
    """Also train the norm of each row of the weight (DoRA, Liu et al. 2024, arXiv:2402.09353):
    W' = m (W0 + s B A) / ‖W0 + s B A‖ with one magnitude m per output."""

    enable_lora: dict[str, tuple[bool, ...]] = {}
    """Which slices of a fused matrix to adapt, by module name or regex, as in loralib's
    MergedLinear: {"c_attn": [true, false, true]} adapts GPT-2's query and value, each with a
    separate product of rank r, and leaves the key alone. Files hold one ordinary update whose rank
    is r times the number of adapted slices."""

    freeze_lora_a: bool = False
    """Freeze lora_A at its initialization and train only lora_B (LoRA-FA, Zhang et al. 2023,
    arXiv:2308.03303): lora_A needs no gradient, optimizer state or saved input. Not recorded in
    files, since PEFT has no such field."""

    fan_in_fan_out: bool = False
    """PEFT's flag for a base weight stored as (in, out). lorakit infers this from the layer's class
    and only keeps the field for files."""

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _accept_single_layer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator(
        "target_modules", "target_parameters", "exclude_modules", "modules_to_save", mode="before"
    )
    @classmethod
    def _sort_sets(cls, value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return tuple(sorted(cast(Set[Any], value)))
        return value

    @field_validator("trainable_token_indices")
    @classmethod
    def _require_valid_token_indices(cls, value: TokenIndices) -> TokenIndices:
        named = value if isinstance(value, dict) else {"": value or ()}
        problems = [p for name, indices in named.items() for p in _index_problems(name, indices)]
        if value is not None and (not value or problems):
            raise ValueError(
                "; ".join(problems) or "expected at least one index; leave the key out"
            )
        return value

    @field_validator("target_modules")
    @classmethod
    def _require_a_target(cls, value: Any, info: ValidationInfo) -> Any:
        has_parameters_only = value == () and info.data.get("target_parameters")
        if value is not None and not value and not has_parameters_only:
            raise ValueError("expected at least one name; leave the key out to adapt every linear")
        return value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _require_valid_regex(cls, value: Any) -> Any:
        return _with_valid_regexes(value, [value] if isinstance(value, str) else [])

    @field_validator("layers_pattern")
    @classmethod
    def _require_valid_layer_regexes(cls, value: Any) -> Any:
        return _with_valid_regexes(value, [value] if isinstance(value, str) else value or [])

    @field_validator("init_lora_weights")
    @classmethod
    def _require_known_initialization(cls, value: bool | str) -> bool | str:
        return check_initialization(value)

    @field_validator("enable_lora")
    @classmethod
    def _require_adapted_slices(cls, value: dict[str, tuple[bool, ...]]) -> Any:
        for name, slices in value.items():
            if len(slices) < 2 or not any(slices):
                raise ValueError(
                    f"{name!r} has {list(slices)}, expected true or false for each of two or more "
                    "slices, and at least one true"
                )
        return value

    @field_validator("rank_pattern", "alpha_pattern", "enable_lora")
    @classmethod
    def _require_valid_regex_keys(cls, value: Any) -> Any:
        return _with_valid_regexes(value, value)

    @model_validator(mode="after")
    def _require_settings_of_the_initialization(self) -> Self:
        given = {key for key in SETTINGS_OF if not _is_default(self, key)}
        require_settings_of(given, self.init_lora_weights)
        return self

    @model_validator(mode="after")
    def _require_representable_scalings(self) -> Self:
        for r in {self.r, *self.rank_pattern.values()}:
            for alpha in {self.lora_alpha, *self.alpha_pattern.values()}:
                scaling = alpha / (r**0.5 if self.use_rslora else r)
                if not 1 / _MOST_SCALING <= scaling <= _MOST_SCALING:
                    raise ValueError(
                        f"lora_alpha={alpha:g} and r={r} give the scaling {scaling:g}, expected "
                        "a float32 number"
                    )
        return self

    def rank_for(self, path: str) -> int:
        """Return the rank of the module at `path`: its `rank_pattern` entry, or `r`."""
        key = matching_pattern(self.rank_pattern, path)
        return self.r if key is None else self.rank_pattern[key]

    def alpha_for(self, path: str) -> float:
        """Return lora_alpha of the module at `path`: its `alpha_pattern` entry, or `lora_alpha`."""
        key = matching_pattern(self.alpha_pattern, path)
        return self.lora_alpha if key is None else self.alpha_pattern[key]

    def slices_for(self, path: str) -> tuple[bool, ...] | None:
        """Return which slices of the module at `path` are adapted, or None for a whole matrix."""
        key = matching_pattern(self.enable_lora, path)
        return None if key is None else self.enable_lora[key]

    def scaling_for(self, path: str) -> float:
        """Return the scaling s of the module at `path`: alpha/r, or alpha/√r for rsLoRA."""
        r = self.rank_for(path)
        return self.alpha_for(path) / (r**0.5 if self.use_rslora else r)

    def alpha_for_scaling(self, scaling: float, r: int) -> float:
        """Return the lora_alpha that gives a module of rank r a scaling."""
        return scaling * (r**0.5 if self.use_rslora else r)

    def with_values(self, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> Self:
        """Return settings with these ranks and values of lora_alpha, by path.

        New patterns come first, as the first that matches counts. Without any it is this object.
        """
        patterns: dict[str, dict[str, Any]] = {}
        for field, values, value_of in (
            ("rank_pattern", ranks, self.rank_for),
            ("alpha_pattern", alphas, self.alpha_for),
        ):
            new = {f"^{re.escape(p)}": v for p, v in values.items() if value_of(p) != v}
            others = {key: v for key, v in getattr(self, field).items() if key not in new}
            patterns |= {field: new | others} if new else {}
        return self.model_copy(update=patterns) if patterns else self


class QuantizationConfig(StrictConfig):
    """Quantization of the frozen base to 4 or 8 bits, in bitsandbytes' storage.

    Source: Dettmers et al. 2023, arXiv:2305.14314 (4 bits); 2022, arXiv:2208.07339 (8 bits).
    """

    bits: Annotated[Literal[4, 8], BeforeValidator(reject_bool)] = 4
    """4: blocks of 64 weights with a code book; 8: int8 with one scale per row."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit code book: quantiles of a normal distribution, or 4-bit floating point."""

    double_quant: bool = True
    """Whether to store the scales of 4-bit blocks in 8 bits: 4.13 bits per parameter, not 4.5."""

    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of matrix products and of all parameters that are not quantized; "auto" is bfloat16 if
    the device supports it, else float32."""

    skip_modules: tuple[str, ...] | None = None
    """Names of linear layers not to quantize; None means the output head. Embeddings, norms, task
    heads and lora.modules_to_save are never quantized."""

    @model_validator(mode="after")
    def _require_four_bits_for_code_book(self) -> Self:
        if self.bits == 8 and (self.quant_type != "nf4" or not self.double_quant):
            raise ValueError(
                "quant_type and double_quant require bits: 4; with bits: 8 leave them out"
            )
        return self


def _is_default(config: BaseModel, key: str) -> bool:
    return getattr(config, key) == type(config).model_fields[key].default


def _with_valid_regexes(value: Any, patterns: Iterable[str]) -> Any:
    """Return `value` if all patterns are valid, for a validator."""
    for pattern in patterns:
        problem = pattern_problem(pattern)
        if problem:
            raise ValueError(f"{short_repr(pattern)} is not a valid regular expression ({problem})")
    return value


def _index_problems(name: str, indices: Sequence[int]) -> list[str]:
    """Return the problems of the token indices of one embedding."""
    where = f" of {name}" if name else ""
    negative = sorted({index for index in indices if index < 0})
    repeated = sorted(index for index, count in Counter(indices).items() if count > 1)
    problems = [f"negative indices{where}: {negative}"] if negative else []
    problems += [f"repeated indices{where}: {repeated}"] if repeated else []
    return problems + ([f"no index{where}"] if name and not indices else [])


def matching_pattern(patterns: Iterable[str], path: str) -> str | None:
    """Return the first pattern that matches the end of a module path, as in PEFT.

    >>> matching_pattern({"k_proj": 4, "layers.0.q_proj": 2}, "model.layers.0.q_proj")
    'layers.0.q_proj'
    >>> matching_pattern({"proj": 4}, "model.layers.0.q_proj") is None
    True
    """
    return next((p for p in patterns if match_pattern(rf"(.*\.)?({p})$", path)), None)
