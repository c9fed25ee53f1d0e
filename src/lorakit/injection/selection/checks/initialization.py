"""Which layers an initialisation that is computed can begin on."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.config import LoraConfig
from lorakit.config.initialization_names import is_rewriting
from lorakit.errors import QuantizationError, ShapeError, TargetError, first_few
from lorakit.initialization.initialize import is_linear
from lorakit.injection.selection.sites import Site
from lorakit.layers import LoraConv1D
from lorakit.layers.bitsandbytes_storage import bits_of

_DRAWN = (True, False, "gaussian", "orthogonal")


def check_initialization(config: LoraConfig, sites: Sequence[Site]) -> None:
    """Refuse layers that cannot begin as a configuration says.

    Raises:
        TargetError: One is no linear layer.
        QuantizationError: "loftq" is to begin a layer that is not quantised.
        ShapeError: "lora_ga" needs more singular vectors than a layer has.
    """
    initialization = config.init_lora_weights
    if initialization in _DRAWN:
        return
    others = [site.path for site in sites if not is_linear(site.adapted_class)]
    if others:
        raise TargetError(
            f"Cannot start {first_few(others, 1)} with init_lora_weights={initialization!r}: "
            "it is no linear layer, expected linear ones alone. Leave it out of target_modules, "
            "or give it an adapter of its own."
        )
    if initialization == "eva" and config.bias == "all":
        raise TargetError(
            "Cannot start with init_lora_weights='eva' and bias='all': a layer that EVA leaves "
            "without a rank would have no place for its trained bias. Use bias='lora_only', or "
            "another init_lora_weights."
        )
    dense = [site.path for site in sites if bits_of(site.module) is None]
    if initialization == "loftq" and dense:
        raise QuantizationError(
            f"Cannot start {first_few(dense, 1)} with init_lora_weights='loftq': its weight is "
            "not quantised, expected one that has lost something. Load the base with quantization, "
            "or use another init_lora_weights."
        )
    if initialization == "lora_ga":
        _require_twice_the_rank(sites)


def _require_twice_the_rank(sites: Sequence[Site]) -> None:
    small = []
    for site in sites:
        in_features, out_features = site.adapted_class.factor_sizes(site.module)
        if 2 * site.r > min(in_features, out_features):
            small.append(f"{site.path} (in={in_features}, out={out_features}, r={site.r})")
    if small:
        raise ShapeError(
            f"Cannot start {first_few(small, 1)} with init_lora_weights='lora_ga': it takes 2r "
            "singular vectors of the gradient, expected r up to half of min(in, out). Lower r, or "
            "give these layers a rank_pattern."
        )


def rewritten_base_problems(config: LoraConfig, sites: Sequence[Site]) -> list[str]:
    """Return why factors that PEFT made for a base it has changed cannot be put on these layers."""
    if not is_rewriting(config.init_lora_weights):
        return []
    named = f"init_lora_weights={config.init_lora_weights!r}"
    if "_niter_" in str(config.init_lora_weights):
        return [
            f"it has {named}, so its factors belong to a base that was changed by factors drawn at "
            "random, which cannot be computed again. Convert it with PEFT's "
            "path_initial_model_for_weight_conversion."
        ]
    quantized = [site.path for site in sites if bits_of(site.module) is not None]
    if quantized:
        return [
            f"it has {named}, and PEFT quantises anew what it leaves of {quantized[0]}, so its "
            "base cannot be computed from a quantised one. Put it on the 16-bit base and save it "
            "from there."
        ]
    conv1d = [site.path for site in sites if issubclass(site.adapted_class, LoraConv1D)]
    if conv1d and config.init_lora_weights == "olora":
        return [
            f"it has {named} on {conv1d[0]}, a Conv1D, whose transposed weight PEFT does not "
            "transpose. Convert it with PEFT's path_initial_model_for_weight_conversion."
        ]
    return []
