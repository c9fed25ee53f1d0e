"""Conversion from and to state dicts of Microsoft's loralib: `<module>.lora_A`, `<module>.lora_B`.

They hold no configuration: alpha, and which slices of a fused matrix are adapted, are in the code
that built the model, and must be given.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.formats.loralib_convolutions import (
    WeightShapes,
    convolution_update,
    weight_shape,
)
from lorakit.adapters.formats.loralib_trained_in_full import trained_in_full
from lorakit.adapters.on_model.save_and_load import view_of
from lorakit.adapters.operations.requirements import require_low_rank
from lorakit.adapters.ranks import with_ranks
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, ConfigError, first_few
from lorakit.injection.activation import adapter_names
from lorakit.injection.state import (
    adapted_layers,
    base_modules,
    require_state,
    updates_named,
)
from lorakit.layers import KernelShape, LowRankUpdate
from lorakit.layers.updates.sliced_update import SlicedUpdate, in_blocks, out_of_blocks

Bias = Literal["none", "all", "lora_only"]
EnableLora = Sequence[bool] | Mapping[str, Sequence[bool]]

_A, _B = ".lora_A", ".lora_B"


@torch.no_grad()
def to_loralib(adapter: Adapter, *, enable_lora: EnableLora | None = None) -> dict[str, Tensor]:
    """Return an adapter's tensors under loralib's names.

    The layers that load them must be built with the rank and lora_alpha of each module; a
    `MergedLinear` with both divided by its number of adapted slices. loralib scales only by
    lora_alpha / r, so with rsLoRA lora_B is multiplied by sqrt(r).

    Args:
        adapter: The adapter.
        enable_lora: Which slices of fused matrices are adapted, for all modules or by module path;
            these are written in the layout of `MergedLinear`.

    Raises:
        AdapterFileError: The adapter is more than s B A, is not finite, or mixes the slices of a
            fused matrix.
    """
    require_low_rank(adapter, "convert", "the adapter")
    config = adapter.config
    ratios = {
        path: config.scaling_for(path) / (config.alpha_for(path) / A.shape[0])
        for path, (A, _) in adapter.factors.items()
    }
    return _under_loralib_names(adapter, ratios, enable_lora)


def _under_loralib_names(
    adapter: Adapter, ratios: Mapping[str, float], enable_lora: EnableLora | None
) -> dict[str, Tensor]:
    """Return tensors under loralib's names.

    Args:
        adapter: The adapter.
        ratios: By module path, the scaling divided by that of the layer that will load it.
        enable_lora: Adapted slices of each `MergedLinear`, for all of them or by module path.
    """
    if adapter.convolutions:
        raise AdapterFileError(
            f"Cannot write {next(iter(adapter.convolutions))} under loralib's names: it is a "
            "convolution, whose factors loralib stores in another form. Save the adapter in PEFT's "
            "layout."
        )
    tensors: dict[str, Tensor] = {}
    for path, (A, B) in adapter.factors.items():
        slices = enable_lora.get(path) if isinstance(enable_lora, Mapping) else enable_lora
        compact = B if slices is None else out_of_blocks(B, slices)
        if compact is None:
            raise AdapterFileError(
                f"Cannot write {path} as a MergedLinear: its lora_B {tuple(B.shape)} is not zero "
                f"outside the slices of enable_lora={list(slices or ())}. Leave enable_lora out."
            )
        tensors[path + _A] = A
        tensors[path + _B] = compact if ratios[path] == 1 else compact * ratios[path]
    return tensors | dict(adapter.replaced)


@torch.no_grad()
def from_loralib(
    tensors: Mapping[str, Tensor],
    lora_alpha: float,
    *,
    enable_lora: EnableLora | None = None,
    embeddings: Sequence[str] = (),
    base_model: str | None = None,
    convolutions: WeightShapes | None = None,
    where: str = "the state dict",
) -> Adapter:
    """Return the adapter in a loralib state dict.

    A `MergedLinear` with n adapted slices is a grouped product; it becomes an ordinary update of
    rank r·n with the same product, whose lora_B is zero outside the blocks. A `ConvLoRA`, whose
    factors form a weight differently, becomes an update of the rank of its product.

    Args:
        tensors: `lora_state_dict(model)`, with heads and biases if they are trained, or a whole
            state dict, of which the factors alone are read.
        lora_alpha: lora_alpha of the layers; loralib's default is 1.
        enable_lora: Adapted slices of each `MergedLinear`, for all of them or by module path. A
            layer with one adapted slice has factors like any other layer: it is recognized by its
            weight, or must be named by its path.
        embeddings: Paths of adapted embeddings; required if the base's weights are missing or
            square. A `Linear` with fan_in_fan_out=True and without bias looks like an embedding;
            for those leave the weights out.
        base_model: Hub id or directory of the base, to be recorded.
        convolutions: Shapes of the weights of `ConvLoRA`s by module path; required if the base's
            weights are missing.
        where: Name of the origin for error messages.

    Raises:
        ConfigError: lora_alpha is not above 0.
        AdapterFileError: A factor lacks its partner, does not fit it, or belongs to a layer that
            lorakit cannot adapt; names the first problem.

    Source: microsoft/LoRA, loralib/layers.py.
    """
    if isinstance(lora_alpha, bool) or not 0 < lora_alpha < float("inf"):
        raise ConfigError(
            f"Cannot read {where}: got lora_alpha={lora_alpha!r}, expected a number above 0. Give "
            "the lora_alpha of the layers (loralib's default is 1)."
        )
    paths = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    problems = [
        f"{key} has no partner {key.removesuffix(_B) + _A}"
        for key in tensors
        if key.endswith(_B) and key.removesuffix(_B) not in paths
    ]
    kernels: dict[str, KernelShape] = {}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    alphas: dict[str, float] = {}
    found_embeddings: set[str] = set()
    found_merged = False
    for path in paths:
        A, B = tensors[path + _A], tensors.get(path + _B)
        shape = weight_shape(path, tensors, convolutions)
        if shape is not None and B is not None:
            made = convolution_update(path, A, B, shape, lora_alpha)
            if isinstance(made, str):
                problems.append(made)
            else:
                factors[path], kernels[path] = (made.A, made.B), made.shape
                alphas[path] = made.A.shape[0]  # a scaling of 1
            continue
        problem = _problem(path, A, B, tensors)
        if problem or B is None:
            problems.append(problem)
            continue
        slices = _find_slices(path, A, B, tensors, enable_lora, path in embeddings)
        if isinstance(slices, str):
            problems.append(slices)
        elif slices is None and A.shape[0] != B.shape[1]:
            problems.append(
                f"{path} is a MergedLinear ({path}.lora_A {tuple(A.shape)}, {path}.lora_B "
                f"{tuple(B.shape)}); say which of its slices are adapted (enable_lora)"
            )
        elif slices is not None and not _is_grouped(A, B, slices):
            problems.append(
                f"{path} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, which do not fit "
                f"enable_lora={list(slices)}"
            )
        else:
            groups = sum(slices) if slices is not None else 1
            factors[path] = (A, B if slices is None else in_blocks(B, slices))
            alphas[path] = lora_alpha * groups  # alpha / r of one group
            # An embedding has no bias; a transposed Linear or MergedLinear has the same shape.
            may_be_embedding = slices is None and f"{path}.bias" not in tensors
            weight = tensors.get(f"{path}.weight") if may_be_embedding else None
            if path in embeddings or _is_embedding(A, B, weight):
                found_embeddings.add(path)
            elif isinstance(enable_lora, Sequence) and slices is not None:
                found_merged = True
    if isinstance(enable_lora, Mapping):
        problems += [
            f"there is no {path}, which enable_lora names" for path in enable_lora.keys() - paths
        ]
    elif enable_lora is not None and paths and not problems and not found_merged:
        problems.append(f"it has no MergedLinear, but enable_lora={list(enable_lora)} is given")
    problems += [
        f"there is no {path}, which embeddings names" for path in embeddings if path not in paths
    ]
    problems += [
        f"there is no {path}, which convolutions names"
        for path in convolutions or ()
        if path not in paths
    ]
    if not paths and not problems:
        problems.append("it has no key that ends in .lora_A")
    if problems:
        raise AdapterFileError(
            f"Cannot read {where} as a loralib state dict: {first_few(problems, 1)}. Expected "
            "<module>.lora_A (r, in) and <module>.lora_B (out, r)."
        )
    full = trained_in_full(tensors, factors, (_A, _B))
    ranks = {path: A.shape[0] for path, (A, _) in factors.items()}
    config = LoraConfig(
        target_modules=tuple(sorted(factors)), bias=full.bias, modules_to_save=full.modules
    )
    config = with_ranks(config, ranks, alphas)
    return Adapter(
        config,
        factors,
        full.tensors,
        frozenset(found_embeddings),
        {},
        base_model,
        convolutions=kernels,
    )


def _problem(path: str, A: Tensor, B: Tensor | None, tensors: Mapping[str, Tensor]) -> str:
    if B is None:
        return f"{path}.lora_A has no partner {path}.lora_B"
    if A.ndim != 2 or B.ndim != 2:
        shapes = f"lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}"
        return f"{path} has {shapes}, not two matrices"
    return ""


def _find_slices(
    path: str,
    A: Tensor,
    B: Tensor,
    tensors: Mapping[str, Tensor],
    enable_lora: EnableLora | None,
    is_named_embedding: bool,
) -> Sequence[bool] | str | None:
    """Return which slices of a module are adapted, None for a whole matrix, or a problem."""
    weight = tensors.get(f"{path}.weight")
    if isinstance(enable_lora, Mapping):
        slices = enable_lora.get(path)
        if slices is None or weight is None or _is_weight_of(weight, A, B, slices):
            return slices
        return (
            f"{path} has lora_A {tuple(A.shape)}, lora_B {tuple(B.shape)} and {path}.weight "
            f"{tuple(weight.shape)}, which do not fit enable_lora={list(slices)}"
        )
    if enable_lora is None or is_named_embedding:
        return None
    if A.shape[0] != B.shape[1]:
        return enable_lora
    # With one adapted slice, the factors have the shapes of an ordinary update.
    if sum(enable_lora) != 1 or len(enable_lora) == 1:
        return None
    if weight is None:
        return (
            f"cannot tell whether {path} is a MergedLinear with one adapted slice, as its "
            "weight is missing; give a dict that holds it, or enable_lora by module path"
        )
    return enable_lora if _is_weight_of(weight, A, B, enable_lora) else None


def _is_weight_of(weight: Tensor, A: Tensor, B: Tensor, slices: Sequence[bool]) -> bool:
    """Return whether a weight, or its transpose, fits a MergedLinear with these factors."""
    out = B.shape[0] // max(1, sum(slices)) * len(slices)
    return sorted(weight.shape) == sorted((A.shape[1], out))


def _is_grouped(A: Tensor, B: Tensor, slices: Sequence[bool]) -> bool:
    groups = sum(slices)
    return bool(groups) and A.shape[0] == groups * B.shape[1] and B.shape[0] % groups == 0


def _is_embedding(A: Tensor, B: Tensor, weight: Tensor | None) -> bool:
    """Return whether a weight is an embedding's (vocabulary, dim), not a linear layer's."""
    sizes = (A.shape[1], B.shape[0])
    return weight is not None and weight.shape == sizes and sizes[0] != sizes[1]


def _bias_of(module: nn.Module) -> nn.Parameter | None:
    """Return the bias among a module's direct parameters."""
    return dict(module.named_parameters(recurse=False)).get("bias")


def mark_only_lora_as_trainable(model: nn.Module, bias: Bias = "none") -> None:
    """Let only lora_A and lora_B of the active adapters require gradients, as loralib does.

    Heads that an adapter trains are frozen, too; biases follow `bias`. `set_adapter` restores the
    settings of each adapter.

    Args:
        model: A model with adapters.
        bias: "none" freezes all biases; "all" and "lora_only" train the adapter's copies of
            them, since the base is never written to.

    Raises:
        AdapterNameError: The model carries no adapter.
        ConfigError: `bias` is unknown, or an active adapter was added without such biases.
    """
    state = require_state(model)
    _require_bias(bias)
    for name in state.active:
        has = state.configs[name].bias
        if bias != "none" and has != "all" and has != bias:
            raise ConfigError(
                f"Cannot train biases of adapter {name!r} with bias={bias!r}: it was added with "
                f"bias={has!r}, so it has no copies of them. Add it with LoraConfig(bias={bias!r})."
            )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, layer in adapted_layers(model):
        for name in layer.active_updates:
            if name in layer.updates:
                update = cast(LowRankUpdate, layer.updates[name])
                update.require_gradients_(True)
                for variant, tensor in zip(update.variants, update.companions(), strict=True):
                    if bias == "none" and variant.is_of_base and tensor is not None:
                        tensor.requires_grad_(False)
    if bias == "all":
        _train_other_biases(model, state.active)


def _train_other_biases(model: nn.Module, names: Sequence[str]) -> None:
    """Train the adapters' copies of biases outside their layers and heads."""
    for name in names:
        heads = tuple(f"{path}." for path in require_state(model).configs[name].modules_to_save)
        for path, module in base_modules(model):
            copies = getattr(module, "trained_copies", {})
            if name in copies and not f"{path}.".startswith(heads or ("\0",)):
                bias = _bias_of(copies[name])
                if bias is not None:
                    bias.requires_grad_(True)


def lora_state_dict(
    model: nn.Module, bias: Bias = "none", name: str | None = None
) -> dict[str, Tensor]:
    """Return an adapter's tensors under loralib's names: `<module>.lora_A`, `<module>.lora_B`.

    Args:
        model: A model with adapters.
        bias: Which biases to include: none, those of adapted layers, or all of the model's; the
            adapter's where it trains them, else the base's.
        name: Name of the adapter; None takes the only one, or "default".

    Returns: Detached tensors; only lora_B with rsLoRA or of fused matrices is a copy.

    Raises:
        AdapterNameError: There is no such adapter.
        ConfigError: `bias` is unknown.
    """
    _require_bias(bias)
    known = adapter_names(model)
    name = name or (known[0] if len(known) == 1 else "default")
    adapter = view_of(model, name)
    config = require_state(model).configs[name]
    require_low_rank(adapter, "convert", f"adapter {name!r}")
    updates = {path: update for path, _, update in updates_named(model, name)}
    fused = {path: u.parts for path, u in updates.items() if isinstance(u, SlicedUpdate)}
    # The rank of the loralib layer: that of one slice, or of the saved factors.
    ranks = {p: u.r if p in fused else adapter.factors[p][0].shape[0] for p, u in updates.items()}
    ratios = {p: u.scaling / (config.alpha_for(p) / ranks[p]) for p, u in updates.items()}
    tensors = _under_loralib_names(adapter, ratios, fused)
    kept = {key: tensor for key, tensor in tensors.items() if key.endswith((_A, _B))}
    if bias == "none":
        return kept
    for path, module in base_modules(model):
        of_base = _bias_of(module)
        if of_base is not None and (bias == "all" or path in adapter.factors):
            key = f"{path}.bias"
            kept[key] = adapter.replaced.get(key, of_base.detach())
    return kept


def _require_bias(bias: str) -> None:
    if bias not in ("none", "all", "lora_only"):
        raise ConfigError(
            f"Unknown setting of bias: got {bias!r}, expected 'none', 'all' or 'lora_only'. Choose "
            "one."
        )
