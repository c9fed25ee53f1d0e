"""The plan of an adapter with tensors: each tensor needs a place, and each place a tensor."""

from collections.abc import Mapping

import torch
from torch import nn

from lorakit.errors import AdapterMismatchError, did_you_mean
from lorakit.initialization import initialization_of
from lorakit.injection.selection.adapted_classes import adapted_class_of, describe
from lorakit.injection.selection.attention import OUTPUT_OBSTACLE, attention_outputs, with_outputs
from lorakit.injection.selection.bypassed_layers import bypassed_layers, require_called
from lorakit.injection.selection.checks import check_dropout, split_by_conv_groups
from lorakit.injection.selection.heads import quantized_head_problems
from lorakit.injection.selection.parameters import (
    WEIGHT,
    class_for,
    is_by_parameter,
    modules_by_path,
    parameter_at,
    select_parameters,
)
from lorakit.injection.selection.plan import (
    InjectionPlan,
    free_modules,
    plan_biases,
    token_conflicts,
)
from lorakit.injection.selection.sites import AdapterTensors, Site
from lorakit.injection.selection.targets import match_targets, name_matches, selects_all
from lorakit.injection.selection.trained_tokens import find_token_sites, misfits
from lorakit.injection.selection.variants import variants_of
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.layers import KernelShape
from lorakit.layers.copies import shallow_plain
from lorakit.layers.kinds.linear import AdaptedLinear
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.kinds.read_weight import LoraReadWeight


def plan_from_tensors(
    model: nn.Module, adapter: AdapterTensors, bypassed: Mapping[str, str] | None = None
) -> InjectionPlan:
    """Work out where the tensors of an adapter go.

    Args:
        model: The base.
        adapter: The adapter.
        bypassed: What `bypassed_layers` says of the base, where it is known already.

    Raises:
        AdapterMismatchError: A tensor has no place in the model or another shape than its place, or
            a place has no tensor; names the first problem and counts the rest.
        TargetError: The model reads the weight of a layer instead of calling it, or dropout cannot
            act on a module's input.
    """
    modules = modules_by_path(model)
    config = adapter.config
    plan = InjectionPlan(config)
    plan.heads = _heads(modules, adapter)
    problems = _vocabulary_problems(model, modules, adapter)
    problems += quantized_head_problems(plan.heads)
    outputs = attention_outputs(modules)
    for path in adapter.factors:
        if path in outputs and outputs[path] not in adapter.factors:
            # PEFT adapts whatever a name selects; nothing calls what it adds here.
            plan.skipped.append((path, f"its update acts nowhere: {OUTPUT_OBSTACLE}"))
            continue
        _add_site(plan, modules, adapter, path, path in outputs, problems)
    free = free_modules(modules, plan)
    _check_complete(free, adapter, problems)
    plan_biases(plan, free)
    _check_replaced(plan, adapter, problems)
    rows = adapter.trained_tokens
    plan.tokens = find_token_sites(model, modules, config, problems, rows)
    problems += misfits(plan.tokens, rows) + token_conflicts(plan)
    _check_base_weights(modules, adapter, problems)
    problems += initialization_of(config.init_lora_weights).file_problems(plan.sites, config)
    if problems:
        more = f" ({len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise AdapterMismatchError(
            f"The adapter was made for another base than this {type(model).__name__}: "
            f"{problems[0]}{more} Load the base the adapter names, or another adapter."
        )
    check_dropout(config, plan.sites)
    require_called(bypassed_layers(modules) if bypassed is None else bypassed, plan.sites)
    return plan


def _vocabulary_problems(
    model: nn.Module, modules: dict[str, nn.Module], adapter: AdapterTensors
) -> list[str]:
    needed, there = rows_needed(model, modules, adapter)
    if needed <= there:
        return []
    return [
        f"it was trained with a vocabulary of {needed} tokens, but the base's embeddings have "
        f"{there} rows. Call model.resize_token_embeddings({needed}) on the base, or "
        "lorakit.adapters.fit_vocabulary(model, adapter), before adding it."
    ]


def _heads(modules: dict[str, nn.Module], adapter: AdapterTensors) -> dict[str, nn.Module]:
    """Return the modules the adapter trains in full.

    PEFT takes any module whose path ends in a name of modules_to_save, so "classifier" also selects
    DistilBERT's "pre_classifier"; such a module counts if the adapter has tensors for it. So does a
    module whose path ends in the whole path of another.
    """
    names = adapter.config.modules_to_save
    open_names = [name for name in names if name not in modules]
    trained = {
        ".".join(parts[:end])
        for parts in (key.split(".") for key in adapter.replaced)
        for end in range(1, len(parts))
    }
    heads = {
        path: module
        for path, module in modules.items()
        if path in names
        or name_matches(open_names, path)
        or (path.endswith(names) and path in trained)
    }
    outer = tuple(f"{path}." for path in heads)
    return {path: module for path, module in heads.items() if not path.startswith(outer)}


def _check_complete(
    free: dict[str, nn.Module], adapter: AdapterTensors, problems: list[str]
) -> None:
    """Find modules that the configuration selects but the adapter has no tensors for."""
    selected = dict.fromkeys(select_parameters(adapter.config, free, []), "target_parameters")
    if not selects_all(adapter.config):
        outputs = attention_outputs(free)
        adaptable = [
            path
            for path, module in free.items()
            if adapted_class_of(module) is not None and path not in outputs
        ]
        found, _ = match_targets(adapter.config, adaptable, [])
        selected |= dict.fromkeys(with_outputs(found, outputs), "target_modules")
    problems += [
        f"the adapter has no tensors for {path!r}, which its {field} select."
        for path, field in selected.items()
        if path not in adapter.factors
    ]


def _add_site(
    plan: InjectionPlan,
    modules: dict[str, nn.Module],
    adapter: AdapterTensors,
    path: str,
    is_output: bool,
    problems: list[str],
) -> None:
    module = modules.get(path) or parameter_at(modules, path)
    if module is None:
        # Only the first problem is shown, and finding the nearest of many names takes time.
        hint = "" if problems else did_you_mean(path, modules)
        problems.append(f"the base has no module {path!r}, which the adapter adapts.{hint}")
        return
    adapted_class = class_for(module, is_output)
    matrices = (AdaptedLinear, LoraReadWeight, AdaptedParameter)
    is_matrix = adapted_class is not None and issubclass(adapted_class, matrices)
    if is_by_parameter(adapter.config, path) and not is_matrix:
        problems.append(
            f"target_parameters name '{path}.{WEIGHT}', but {path!r} is a {describe(module)}, "
            "whose factors belong to another form of its weight."
        )
        return
    if adapted_class is None:
        problems.append(f"{path!r} is a {describe(module)}, which cannot be adapted.")
        return
    A, B = adapter.factors[path]
    in_features, out_features = adapted_class.factor_sizes(module)
    r = A.shape[-2] if A.ndim > 1 else 0
    expected_A, expected_B = adapted_class.factor_shapes(module, r)
    given: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        (f"{path}.lora_A", tuple(A.shape), expected_A),
        (f"{path}.lora_B", tuple(B.shape), expected_B),
    ]
    for variant in variants_of(adapter.config):
        tensor = adapter.companions.get(f"{path}.{variant.name}")
        if variant.file_key and tensor is None:
            problems.append(
                f"the adapter has no {variant.name} for {path!r}, though it has {variant.setting}."
            )
            return
        if tensor is not None:
            expected = variant.shape(in_features, out_features)
            given.append((f"{path}.{variant.file_key}", tuple(tensor.shape), expected))
    own_shape, shape = adapted_class.kernel_shape(module), adapter.convolutions.get(path)
    if shape != own_shape:
        problems.append(
            f"{path}.lora_A is for {_kernel_text(shape)}, but the base's layer is "
            f"{_kernel_text(own_shape)}."
        )
        return
    for key, got, expected in given:
        if got != expected:
            problems.append(f"{key} has shape {got}, but the base's layer needs {expected}.")
            return
    site = Site(path, module, adapted_class, r, adapter.config.scaling_for(path))
    plan.sites.append(split_by_conv_groups(site, adapter.config))


def _kernel_text(shape: KernelShape | None) -> str:
    if shape is None:
        return "no convolution"
    groups = f" in {shape.groups} groups" if shape.groups > 1 else ""
    return f"a convolution of {shape.channels} channels by {list(shape.kernel)}{groups}"


def _check_replaced(plan: InjectionPlan, adapter: AdapterTensors, problems: list[str]) -> None:
    """Compare the names and shapes of heads and biases with what the base needs."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, module in plan.heads.items():
        for name, tensor in saved_tensors(module).items():
            expected[f"{path}.{name}"] = tuple(tensor.shape)
    for site in plan.sites:
        if site.path in plan.site_biases:
            expected[f"{site.path}.bias"] = tuple(site.module.bias.shape)  # type: ignore[union-attr,arg-type]  # a module with a bias
    for path, module in plan.other_biases.items():
        expected[f"{path}.bias"] = tuple(module.bias.shape)  # type: ignore[union-attr,arg-type]  # a module with a bias

    for key, tensor in adapter.replaced.items():
        if key not in expected:
            hint = "" if problems else did_you_mean(key, expected)
            problems.append(f"the base has no place for {key!r} {tuple(tensor.shape)}.{hint}")
        elif tuple(tensor.shape) != expected[key]:
            problems.append(
                f"{key} has shape {tuple(tensor.shape)}, but the base's is {expected[key]}."
            )
    missing = [key for key in expected if key not in adapter.replaced]
    if missing:
        problems.append(f"the adapter has no {missing[0]!r}, which its configuration trains.")


def _check_base_weights(
    modules: dict[str, nn.Module], adapter: AdapterTensors, problems: list[str]
) -> None:
    """Compare base weights in the file (those of embeddings) with the base's."""
    for path, repeated in adapter.base_weights.items():
        present = getattr(modules.get(path), "weight", None)
        if present is None:
            hint = "" if problems else did_you_mean(path, modules)
            problems.append(
                f"the base has no place for '{path}.weight' {tuple(repeated.shape)}.{hint}"
            )
        elif present.shape != repeated.shape:
            problems.append(
                f"{path}.weight has shape {tuple(repeated.shape)} in the adapter's file, but the "
                f"base's is {tuple(present.shape)}. Resize the base's embeddings first."
            )
        elif not present.is_meta and not torch.equal(
            present.detach().cpu(), repeated.to(present.dtype)
        ):
            problems.append(
                f"{path}.weight in the adapter's file differs from the base's. Save the adapter "
                "without its embedding layers, or name them in modules_to_save."
            )


def saved_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers of a base module, without trained copies."""
    return {
        name: tensor
        for name, tensor in shallow_plain(module).state_dict().items()
        if "trained_copies." not in name and "updates." not in name
    }
