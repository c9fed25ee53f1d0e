"""Configurations: frozen, strict, with PEFT's field names and meanings."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

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
    known_initialization,
    require_settings_of,
)
from lorakit.config.patterns import match_pattern, pattern_problem
from lorakit.config.problems import config_error, shown

NOT_COUNTED = -100
"""Label of a token that does not count in the loss; the default of torch's cross entropy."""


class TaskType(StrEnum):
    """What the adapted model is trained to do; the values are PEFT's."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"


class _StrictMeta(type(BaseModel)):
    """Turns pydantic's ValidationError into a ConfigError where a user constructs a config."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise config_error(error, cls, cls.__name__) from None  # type: ignore[arg-type]


class StrictConfig(BaseModel, metaclass=_StrictMeta):
    """A frozen pydantic model that forbids unknown keys and explains every problem at once.

    Its dictionaries and lists cannot be changed either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def model_post_init(self, context: Any) -> None:
        """Freeze what the fields hold."""
        freeze_fields(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not validated, but frozen."""
        copied = super().model_copy(update=update, deep=deep)
        freeze_fields(copied)
        return copied

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate a mapping read from a file.

        Args:
            values: The mapping, as YAML or JSON gave it.
            where: What to call its origin in an error, such as the file's path.

        Raises:
            ConfigError: Lists every unknown key (with the nearest right one) and wrong value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise config_error(error, cls, where) from None


def _no_bool(value: Any) -> Any:
    # Python's True is the integer 1, so that `r: true` in a recipe would be rank 1.
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


MOST = 2**31 - 1
"""What libraries underneath count to."""
_MOST_SCALING = 3.4e38
"""Largest finite number of float32, rounded down."""

Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MOST)]
Rank = Count
Index = Annotated[int, BeforeValidator(_no_bool), Field(le=MOST)]
Alpha = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]


class LoraConfig(StrictConfig):
    """The LoRA configuration, with PEFT's names, defaults and meanings.

    Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """

    r: Rank = 8
    """Rank of the update: rows of lora_A and columns of lora_B."""

    lora_alpha: Alpha = 8
    """Numerator of the scaling lora_alpha / r."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input element on the low-rank path."""

    target_parameters: tuple[str, ...] = ()
    """Names of parameters that are no layers, matched as names in `target_modules` are: the stacked
    weights of experts, such as "mlp.experts.gate_up_proj". They come on top of target_modules."""

    target_modules: str | tuple[str, ...] | None = None
    """Names (a module's path equals one or ends in "." + one), a regex matched in full against
    the path, or "all-linear" (also when None): every linear layer but the output head, the two
    projections of nn.MultiheadAttention among them. Naming such an attention adapts both. Empty
    where `target_parameters` alone are adapted."""

    exclude_modules: str | tuple[str, ...] | None = None
    """Names or a full-match regex of modules to leave out; each must exclude something."""

    layers_to_transform: tuple[Index, ...] | None = None
    """Indices of the layers to adapt, counted from 0; None adapts all."""

    layers_pattern: str | tuple[str, ...] | None = None
    """Name of the module list that `layers_to_transform` counts in; None takes any list."""

    rank_pattern: dict[str, Rank] = {}
    """Rank by module name or regex (matched against the end of the path), in place of `r`."""

    alpha_pattern: dict[str, Alpha] = {}
    """lora_alpha by module name or regex, in place of `lora_alpha`."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained: none, all of the model's, or those of adapted layers."""

    modules_to_save: tuple[str, ...] = ()
    """Names of modules trained in full and saved with the adapter. The task heads of SEQ_CLS and
    TOKEN_CLS models are added without being named."""

    trainable_token_indices: tuple[Index, ...] | dict[str, tuple[Index, ...]] | None = None
    """Tokens whose rows are trained in full, and nothing else of the weight: of the input embedding
    and of what is tied to it, or by name of the embedding or output layer. None trains none."""

    task_type: TaskType | None = None
    """What the model is trained to do; decides which heads are trained."""

    init_lora_weights: bool | str = True
    """True: A Kaiming-uniform (a = sqrt 5), B zero; "gaussian": A normal with standard deviation
    1/r, B zero; "orthogonal": both random with B A = 0, for an even rank; False: both random, so
    that the update is not zero (for tests).

    From the base's weight: "pissa" (its largest singular values; arXiv:2404.02948), "pissa_niter_4"
    (the same by a fast randomised SVD with 4 iterations), "olora" (its QR decomposition;
    arXiv:2406.01775), "loftq" (what quantising it has cost; arXiv:2310.08659). From training data:
    "eva" (the inputs' principal components; arXiv:2410.07170), "lora_ga" (the gradient's singular
    vectors; arXiv:2407.05000). The base stays as it is: of "pissa", "olora" and "lora_ga" the
    update is s (B A - B0 A0), zero at the start."""

    eva_rho: float = Field(2.0, ge=1, allow_inf_nan=False)
    """For "eva": the largest rank a layer may get, in multiples of its own; 1 changes none."""

    init_batches: Count = 8
    """For "eva" and "lora_ga" in training: from how many batches they are computed."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) in place of lora_alpha / r."""

    use_dora: bool = False
    """Train the length of each row of the weight beside the update (DoRA, Liu et al. 2024,
    arXiv:2402.09353): W' = m (W0 + s B A) / ‖W0 + s B A‖ with a magnitude m for each output."""

    enable_lora: dict[str, tuple[bool, ...]] = {}
    """Parts of a fused matrix by module name or regex, as loralib's MergedLinear has them: with
    {"c_attn": [true, false, true]} GPT-2's query and value are adapted, each by a product of rank r
    of its own, and its key is not. Files hold an ordinary update of rank r times the parts."""

    freeze_lora_a: bool = False
    """Leave lora_A as it was drawn and train lora_B alone (LoRA-FA, Zhang et al. 2023,
    arXiv:2308.03303): no gradient, no optimizer state, and no saved input for it. Files do not say
    so, as PEFT has no such field."""

    fan_in_fan_out: bool = False
    """PEFT's note that the base weight is stored (in, out); lorakit sees this from the layer's
    class, so the field is only kept for the file."""

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_layer_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator(
        "target_modules", "target_parameters", "exclude_modules", "modules_to_save", mode="before"
    )
    @classmethod
    def _sets_are_lists(cls, value: Any) -> Any:
        return tuple(sorted(value)) if isinstance(value, (set, frozenset)) else value

    @field_validator("trainable_token_indices")
    @classmethod
    def _token_indices_are_rows(cls, value: Any) -> Any:
        named = value if isinstance(value, dict) else {"": value or ()}
        problems = [p for name, indices in named.items() for p in _index_problems(name, indices)]
        if value is not None and (not value or problems):
            raise ValueError(
                "; ".join(problems) or "expected at least one index; leave the key out"
            )
        return value

    @field_validator("target_modules")
    @classmethod
    def _something_is_targeted(cls, value: Any, info: ValidationInfo) -> Any:
        parameters_alone = value == () and info.data.get("target_parameters")
        if value is not None and not value and not parameters_alone:
            raise ValueError("expected at least one name; leave the key out to adapt every linear")
        return value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _one_string_is_a_regex(cls, value: Any) -> Any:
        return _with_valid_regexes(value, [value] if isinstance(value, str) else [])

    @field_validator("layers_pattern")
    @classmethod
    def _layer_lists_are_regexes(cls, value: Any) -> Any:
        return _with_valid_regexes(value, [value] if isinstance(value, str) else value or [])

    @field_validator("init_lora_weights")
    @classmethod
    def _initialization_is_known(cls, value: bool | str) -> bool | str:
        return known_initialization(value)

    @field_validator("enable_lora")
    @classmethod
    def _some_slices_are_adapted(cls, value: dict[str, tuple[bool, ...]]) -> Any:
        for name, parts in value.items():
            if len(parts) < 2 or not any(parts):
                raise ValueError(
                    f"{name!r} has {list(parts)}, expected true or false for each of two parts or "
                    "more, and one true at least"
                )
        return value

    @field_validator("rank_pattern", "alpha_pattern", "enable_lora")
    @classmethod
    def _keys_are_regexes(cls, value: Any) -> Any:
        return _with_valid_regexes(value, value)

    @model_validator(mode="after")
    def _settings_have_their_initialization(self) -> Self:
        given = {key for key in SETTINGS_OF if not _is_default(self, key)}
        require_settings_of(given, self.init_lora_weights)
        return self

    @model_validator(mode="after")
    def _scalings_are_numbers_of_tensors(self) -> Self:
        for r in {self.r, *self.rank_pattern.values()}:
            for alpha in {self.lora_alpha, *self.alpha_pattern.values()}:
                scaling = alpha / (r**0.5 if self.use_rslora else r)
                if not 1 / _MOST_SCALING <= scaling <= _MOST_SCALING:
                    raise ValueError(
                        f"lora_alpha={alpha:g} and r={r} give the scaling {scaling:g}, expected "
                        "one that float32 has"
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
        """Return which parts of the module at `path` are adapted, or None for a whole matrix."""
        key = matching_pattern(self.enable_lora, path)
        return None if key is None else self.enable_lora[key]

    def scaling_for(self, path: str) -> float:
        """Return the factor s of the module at `path`: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        r = self.rank_for(path)
        return self.alpha_for(path) / (r**0.5 if self.use_rslora else r)


class QuantizationConfig(StrictConfig):
    """How the frozen base is kept in fewer bits than 16, in bitsandbytes' storage.

    Source: Dettmers et al. 2023, arXiv:2305.14314 (4 bits); 2022, arXiv:2208.07339 (8 bits).
    """

    bits: Annotated[Literal[4, 8], BeforeValidator(_no_bool)] = 4
    """4: blocks of 64 numbers with a code book; 8: int8 with one scale for each row."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Code book of 4 bits: quantiles of a normal distribution, or 4-bit floating point."""

    double_quant: bool = True
    """Whether the scales of 4-bit blocks are kept in 8 bits: 4.13 bits a parameter, not 4.5."""

    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What products run in, and what is not quantised is kept in; "auto" takes bfloat16 where the
    device has it, else float32."""

    skip_modules: tuple[str, ...] | None = None
    """Names of linear layers that are not quantised; None takes the output head. Embeddings and
    norms never are, nor are task heads and lora.modules_to_save, which are trained in full."""

    @model_validator(mode="after")
    def _eight_bits_have_no_code_book(self) -> Self:
        if self.bits == 8 and (self.quant_type != "nf4" or not self.double_quant):
            raise ValueError(
                "quant_type and double_quant are settings of 4 bits; with bits: 8 leave them out"
            )
        return self


def _is_default(config: BaseModel, key: str) -> bool:
    return getattr(config, key) == type(config).model_fields[key].default


def _with_valid_regexes(value: Any, patterns: Iterable[str]) -> Any:
    for pattern in patterns:
        problem = pattern_problem(pattern)
        if problem:
            raise ValueError(f"{shown(pattern)} is not a valid regular expression ({problem})")
    return value


def _index_problems(name: str, indices: Sequence[int]) -> list[str]:
    """Return what is wrong with the token indices of one embedding."""
    where = f" of {name}" if name else ""
    negative = sorted({index for index in indices if index < 0})
    repeated = sorted(index for index, count in Counter(indices).items() if count > 1)
    problems = [f"negative indices{where}: {negative}"] if negative else []
    problems += [f"indices{where} that are there twice: {repeated}"] if repeated else []
    return problems + ([f"no index{where}"] if name and not indices else [])


def matching_pattern(patterns: Iterable[str], path: str) -> str | None:
    """Return the first pattern that fits the end of a module path, as PEFT matches them.

    >>> matching_pattern({"k_proj": 4, "layers.0.q_proj": 2}, "model.layers.0.q_proj")
    'layers.0.q_proj'
    >>> matching_pattern({"proj": 4}, "model.layers.0.q_proj") is None
    True
    """
    return next((p for p in patterns if match_pattern(rf"(.*\.)?({p})$", path)), None)
