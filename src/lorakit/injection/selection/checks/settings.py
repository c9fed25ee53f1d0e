"""Checks that the layers to adapt fit the settings."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.config import LoraConfig
from lorakit.errors import ConfigError, ShapeError, TargetError, first_few
from lorakit.initialization import initialization_of
from lorakit.injection.selection.sites import Site
from lorakit.injection.selection.variants import check_variants
from lorakit.layers.kinds.read_weight import LoraReadWeight


def check_sites(config: LoraConfig, sites: Sequence[Site]) -> None:
    """Refuse layers that do not fit the settings.

    Raises:
        TargetError: A layer does not support a variant, dropout or the initialization.
        ShapeError: A rank does not fit its layer or the initialization.
        QuantizationError: The initialization needs a quantized layer.
    """
    check_variants(config, sites)
    check_dropout(config, sites)
    _check_ranks(sites)
    initialization_of(config.init_lora_weights).check(sites, config)


def check_room(config: LoraConfig, sites: Sequence[Site], max_rank: int) -> None:
    """Refuse a max_rank that is too small, or that the updates cannot reserve.

    Raises:
        ConfigError: Names the reason.
    """
    if isinstance(max_rank, bool) or not isinstance(max_rank, int) or max_rank < 1:
        raise ConfigError(
            f"Cannot keep room for larger ranks: got max_rank={max_rank!r}, expected a whole "
            "number above 0. Give the largest rank of the adapters to swap in."
        )
    initialization = initialization_of(config.init_lora_weights)
    if initialization.has_offset or initialization.needs_data:
        raise ConfigError(
            f"Cannot keep room for larger ranks: got max_rank={max_rank} with init_lora_weights="
            f"{config.init_lora_weights!r}, whose updates change rank or form. "
            "Leave one of them out."
        )
    larger = [f"{site.path} (r={site.r})" for site in sites if site.r > max_rank]
    in_parts = [site.path for site in sites if site.slices is not None]
    if larger or in_parts:
        raise ConfigError(
            f"Cannot keep room for larger ranks in {first_few(larger or in_parts, 3)}: got "
            f"max_rank={max_rank}, expected "
            + (
                "at least the rank there. Raise max_rank."
                if larger
                else "layers that are adapted as a whole, not in slices or groups. Leave max_rank "
                "out, or these layers."
            )
        )


def _check_ranks(sites: Sequence[Site]) -> None:
    too_large = []
    for site in sites:
        in_features, out_features = site.adapted_class.factor_sizes(site.module)
        out_features //= len(site.slices) if site.slices else 1
        if site.r > min(in_features, out_features):
            too_large.append(f"{site.path} (in={in_features}, out={out_features}, r={site.r})")
    if too_large:
        raise ShapeError(
            f"The rank is larger than the layer in {first_few(too_large, 5)}; expected r "
            "up to min(in, out). Lower r, give these layers a rank_pattern, or exclude them."
        )


def check_dropout(config: LoraConfig, sites: Sequence[Site]) -> None:
    """Refuse dropout where its input is not visible.

    Raises:
        TargetError: A module's forward reads the weight itself.
    """
    read = [site for site in sites if issubclass(site.adapted_class, LoraReadWeight)]
    if config.lora_dropout and read:
        kind = read[0].adapted_class.plain_class.__name__
        raise TargetError(
            f"Cannot adapt {read[0].path} with lora_dropout={config.lora_dropout:g}: {kind} reads "
            "its weight in its own forward, so dropout cannot act on the input; expected "
            "lora_dropout=0. Leave it out of target_parameters, or lora_dropout."
        )
