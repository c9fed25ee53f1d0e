"""Keys and layout in PEFT's files of adapted parameters and of attention output projections.

PEFT wraps a module once for each adapted parameter, one wrapper inside the other: the wrapper of
the parameter registered first is the innermost, and each wrapper adds `base_layer` to the keys of
those inside it. The factors of E stacked matrices are concatenated: lora_A is (r E, in), one expert
after the other, and lora_B (out, r E), in which the experts alternate. In lorakit they are lora_A
(E, r, in) and lora_B (E, out, r).

PEFT wraps an attention, too, so the keys of its output projection contain `base_layer`. Readers
give the projection the attention's rank and alpha, regardless of patterns, and PEFT 0.21 adds its
update twice.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lorakit.adapters.ranks import Factors, with_ranks
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, AdapterMismatchError
from lorakit.injection.selection.attention import (
    OUTPUT,
    OUTPUT_SHARE,
    with_output_patterns,
    without_output_patterns,
)
from lorakit.injection.selection.parameters import WEIGHT, is_by_parameter
from lorakit.injection.selection.targets import ALL_LINEAR, name_matches
from lorakit.layers.kinds.experts import EXPERT_PARAMETERS

_WRAPPED = ".base_layer"


def stacked_paths(factors: Factors, config: LoraConfig) -> frozenset[str]:
    """Return the paths of the stacked parameters among adapted modules."""
    names = config.target_parameters
    return frozenset(
        path for path, (A, _) in factors.items() if A.ndim == 3 and name_matches(names, path)
    )


def file_paths(factors: Factors, stacked: frozenset[str]) -> dict[str, str]:
    """Return the path in PEFT's keys of each adapted module or parameter."""
    owners: dict[str, list[str]] = {}
    for path in stacked:
        owner, _, name = path.rpartition(".")
        owners.setdefault(owner, []).append(name)
    paths: dict[str, str] = {}
    for path in factors:
        parent, _, name = path.rpartition(".")
        if path in stacked:
            later = EXPERT_PARAMETERS[EXPERT_PARAMETERS.index(name) + 1 :]
            paths[path] = parent + _WRAPPED * sum(other in later for other in owners[parent])
        else:
            is_output = name == OUTPUT and parent in factors
            paths[path] = f"{parent}{_WRAPPED}.{name}" if is_output else path
    return paths


def to_file_layout(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return stacked factors (E, r, in) and (E, out, r) as (r E, in) and (out, r E)."""
    return A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)


def from_file_layout(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return factors (r E, in) and (out, r E) as (E, r, in) and (E, out, r)."""
    experts = A.shape[0] // r
    stacked_B = B.reshape(B.shape[0], r, experts).permute(2, 0, 1)
    return A.reshape(experts, r, A.shape[-1]), stacked_B.contiguous()


class NamedFactors(NamedTuple):
    """Factors by the paths of modules and parameters in the base."""

    factors: dict[str, tuple[Tensor, Tensor]]
    config: LoraConfig
    """Configuration that gives every path its rank and alpha."""


def find_in_base(factors: Factors, config: LoraConfig, where: str) -> NamedFactors:
    """Find the parameter that each wrapper of a file adapts, and convert factors to our layout.

    Args:
        factors: Factors by the path in the file's keys.
        config: The file's configuration.
        where: Name of the file for error messages.

    Raises:
        AdapterFileError: A wrapper's parameter is unknown, or its factors have another rank.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    wrappers: dict[str, list[str]] = {}
    for path in factors:
        owner = path
        while owner.endswith(_WRAPPED):
            owner = owner.removesuffix(_WRAPPED)
        # An output projection has no stacked weights, though short names may match it.
        is_output = path.endswith(f"{_WRAPPED}.{OUTPUT}")
        if not is_output and _parameters_of(owner, config):
            wrappers.setdefault(owner, []).append(path)
        else:
            plain = path.replace(f"{_WRAPPED}.", ".")
            if plain.endswith(_WRAPPED):
                raise AdapterFileError(
                    f"{where} has factors of a wrapped parameter at {path}, but target_parameters="
                    f"{list(config.target_parameters)!r} does not say of which, expected names of "
                    f"{', '.join(EXPERT_PARAMETERS)}. lorakit only adapts the stacked weights of "
                    "experts."
                )
            found[plain] = factors[path]
    weights: list[str] = []
    for owner, levels in wrappers.items():
        names = _names_at(owner, len(levels), config, where)
        for name, path in zip(names, sorted(levels, key=len, reverse=True), strict=True):
            if name == WEIGHT:
                weights.append(owner)
                found[owner] = factors[path]
            else:
                found[f"{owner}.{name}"] = _stack_factors(
                    f"{owner}.{name}", factors[path], config, where
                )
    config = _with_lookups(config, {owner: f"{owner}.{WEIGHT}" for owner in weights})
    return NamedFactors(found, with_output_patterns(config, _outputs(found)))


def _names_at(owner: str, count: int, config: LoraConfig, where: str) -> list[str]:
    """Return which parameters of a module have factors, in the order of registration.

    Names without a module, such as "gate_up_proj", match the path of every module. If too many
    match, only parameters that are named together with their module count.
    """
    names = _parameters_of(owner, config)
    qualified = [name for name in names if _is_qualified(owner, name, config)]
    if len(names) != count and len(qualified) == count:
        return qualified
    if len(names) == count:
        return names
    raise AdapterFileError(
        f"{where} has factors of {count} parameters at {owner}, but "
        f"target_parameters={list(config.target_parameters)!r} names {len(names)} there "
        f"({', '.join(names)}). The two files do not belong together."
    )


def _is_qualified(owner: str, name: str, config: LoraConfig) -> bool:
    longer = [given for given in config.target_parameters if given != name]
    return name_matches(longer, f"{owner}.{name}")


def find_named_by_weight(factors: Factors, config: LoraConfig) -> frozenset[str]:
    """Return the modules that are targeted by the name of their weight only."""
    return frozenset(
        path for path, (A, _) in factors.items() if A.ndim == 2 and is_by_parameter(config, path)
    )


def with_patterns_of_files(factors: Factors, config: LoraConfig) -> LoraConfig:
    """Return a configuration whose patterns also give the modules' values to their weights.

    PEFT looks up the rank and alpha of a parameter by the parameter's path.
    """
    by_weight = find_named_by_weight(factors, config)
    return _with_lookups(config, {f"{path}.{WEIGHT}": path for path in by_weight})


def _with_lookups(config: LoraConfig, source_of: Mapping[str, str]) -> LoraConfig:
    """Return a configuration in which some paths have the rank and alpha of others."""
    ranks = {path: config.rank_for(source) for path, source in source_of.items()}
    alphas = {path: config.alpha_for(source) for path, source in source_of.items()}
    return config.with_values(ranks, alphas)


def with_outputs_of_files(factors: Factors, config: LoraConfig) -> NamedFactors:
    """Return factors and configuration with the ranks and scalings of output projections in files.

    Other scalings, which sums and resized adapters may have, are folded into lora_B, and smaller
    ranks are padded with zeros.
    """
    outputs = _outputs(factors)
    if _are_of_files(config, outputs):
        return NamedFactors(dict(factors), without_output_patterns(config, outputs))
    ranks = {path: A.shape[-2] for path, (A, _) in factors.items()}
    scalings = {path: config.scaling_for(path) for path in factors}
    made = dict(factors)
    for output, attention in outputs.items():
        r = max(ranks[output], ranks[attention])
        A, B = factors[output]
        share = _folded_share(config, output, attention)
        made[output] = _pad_rank(A, B if share == 1 else B * share, r)
        made[attention] = _pad_rank(*factors[attention], r)
        ranks[output] = ranks[attention] = r
        scalings[output] = OUTPUT_SHARE * scalings[attention]
    alphas = {path: scalings[path] * r for path, r in ranks.items()}
    config = with_ranks(config, ranks, alphas)
    return NamedFactors(made, without_output_patterns(config, outputs))


def with_own_outputs(saved: Factors, carried: Factors, config: LoraConfig) -> Factors:
    """Undo `with_outputs_of_files` for the factors of attentions.

    Args:
        saved: Factors from a file by module path, at least of attentions and their output
            projections.
        carried: The model's factors by module path, for their ranks.
        config: Configuration that gives `carried` its scalings.

    Returns: The factors of attentions and output projections that files change.

    Raises:
        AdapterMismatchError: The factors are not zero beyond the carried rank.
    """
    outputs = _outputs(carried)
    if _are_of_files(config, outputs):
        return {}
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for output, attention in outputs.items():
        share = _folded_share(config, output, attention)
        for path in (attention, output):
            (A, B), r = saved[path], carried[path][0].shape[0]
            if A[r:].any() or B[:, r:].any():
                raise AdapterMismatchError(
                    f"Rank of the tensors at {path}: got values beyond rank {r}, expected zeros "
                    "there, as in files of this adapter. Load them with Adapter.load and "
                    "add_adapter."
                )
            made[path] = A[:r], B[:, :r]
        if share != 1:
            made[output] = made[output][0], made[output][1] / share
    return made


def _are_of_files(config: LoraConfig, outputs: Mapping[str, str]) -> bool:
    """Return whether output projections have the ranks and scalings that files give them."""
    return with_output_patterns(config, outputs) is config


def _folded_share(config: LoraConfig, output: str, attention: str) -> float:
    """Return the factor between lora_B of an output projection in a file and in the model."""
    return config.scaling_for(output) / (OUTPUT_SHARE * config.scaling_for(attention))


def _pad_rank(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    missing = r - A.shape[0]
    if not missing:
        return A, B
    return F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))


def _parameters_of(owner: str, config: LoraConfig) -> list[str]:
    """Return the adapted parameters of a module, in the order of registration."""
    targets = config.target_modules
    if targets not in (None, ALL_LINEAR) and name_matches(targets or (), owner):
        return []
    names = config.target_parameters
    known = (*EXPERT_PARAMETERS, WEIGHT)
    return [name for name in known if name_matches(names, f"{owner}.{name}")]


def _stack_factors(
    path: str, pair: tuple[Tensor, Tensor], config: LoraConfig, where: str
) -> tuple[Tensor, Tensor]:
    (A, B), r = pair, config.rank_for(path)
    if A.shape[0] != B.shape[1] or A.shape[0] % r:
        raise AdapterFileError(
            f"Rank in {where} at {path}: lora_A is {tuple(A.shape)} and lora_B {tuple(B.shape)}, "
            f"expected as many rows as columns and a multiple of r={r}. The two files do not "
            "belong together."
        )
    return from_file_layout(A, B, r)


def _outputs(factors: Mapping[str, object]) -> dict[str, str]:
    """Return the attention of each adapted output projection, both by path."""
    parents = {path: path.rpartition(".")[0] for path in factors if path.endswith(f".{OUTPUT}")}
    return {path: parent for path, parent in parents.items() if parent in factors}
