"""Checks of layers whose slices or groups are adapted one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorakit.config import LoraConfig
from lorakit.errors import ShapeError, TargetError
from lorakit.initialization import INITIALIZATIONS, initialization_of
from lorakit.initialization.protocol import is_linear
from lorakit.injection.selection.sites import Site


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
