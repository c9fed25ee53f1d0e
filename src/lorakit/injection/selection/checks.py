"""Checks that the layers to adapt, their slices and their groups fit the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorakit.config import LoraConfig
from lorakit.errors import ConfigError, ShapeError, TargetError, first_few
from lorakit.initialization import INITIALIZATIONS, initialization_of
from lorakit.initialization.protocol import is_linear
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


def split_by_conv_groups(site: Site, config: LoraConfig) -> Site:
    """Return a site whose update has a block for each group, if the layer has groups.

    Raises:
        ShapeError: The rank is not divisible by the groups.
        TargetError: The initialization computes one product for the whole weight.
    """
    shape = site.adapted_class.kernel_shape(site.module)
    if shape is None or shape.groups == 1:
        return site
    if site.r % shape.groups:
        raise ShapeError(
            f"Cannot adapt {site.path}: got r={site.r}, expected a multiple of its "
            f"{shape.groups} groups. Change r, give it a rank_pattern, or leave it out."
        )
    _check_initialization(site, config)
    return replace(site, r=site.r // shape.groups, slices=(True,) * shape.groups)


def check_slices(config: LoraConfig, sites: Sequence[Site]) -> None:
    """Refuse `enable_lora` for layers whose slices cannot be adapted one by one.

    Raises:
        TargetError: The layer is not linear, or the initialization computes one product for it.
        ShapeError: Its outputs cannot be cut into that many equal slices.
    """
    for site in sites:
        if site.slices is None:
            continue
        if not is_linear(site.adapted_class):
            raise TargetError(
                f"Cannot adapt slices of {site.path}: it is a {type(site.module).__name__}, "
                "expected a linear layer. Leave it out of enable_lora."
            )
        _check_initialization(site, config)
        out_features = site.adapted_class.factor_sizes(site.module)[1]
        if out_features % len(site.slices):
            raise ShapeError(
                f"Cannot adapt slices of {site.path}: enable_lora={list(site.slices)} has "
                f"{len(site.slices)} slices, expected a divisor of its {out_features} outputs. "
                "Give true or false for each of its equal slices."
            )


def _check_initialization(site: Site, config: LoraConfig) -> None:
    """Refuse initializations that compute one product for the whole weight."""
    if not initialization_of(config.init_lora_weights).fits_slices:
        fitting = [value for value, one in INITIALIZATIONS.items() if one.fits_slices]
        raise TargetError(
            f"Cannot adapt slices of {site.path} with init_lora_weights="
            f"{config.init_lora_weights!r}, expected one of {fitting}. Leave init_lora_weights "
            "out, or the module."
        )
