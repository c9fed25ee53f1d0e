"""The variants that a configuration turns on, and the layers that cannot have them."""

from collections.abc import Sequence

from lorakit.config import LoraConfig
from lorakit.errors import TargetError
from lorakit.injection.selection.sites import Site
from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.variants.table import VARIANTS
from lorakit.layers.variants.variant import Variant


def variants_of(config: LoraConfig) -> list[type[Variant]]:
    """Return the variants that a configuration turns on in every layer."""
    return [one for one in VARIANTS if one.setting and getattr(config, one.setting)]


def base_dependent(config: LoraConfig) -> type[Variant] | None:
    """Return the variant of a configuration whose updates depend on the base, or None."""
    return next((one for one in variants_of(config) if one.depends_on_base), None)


def obstacle_of_kind(config: LoraConfig, kind: type[AdaptedLayer]) -> tuple[str, str] | None:
    """Return the setting that layers of a kind cannot have, and why not; None if they can."""
    for variant in variants_of(config):
        reason = variant.obstacle(kind)
        if reason is not None:
            return variant.setting, reason
    return None


def obstacle_of_parameters(config: LoraConfig) -> tuple[str, str] | None:
    """Return the setting that stacked weights cannot have, and why not; None if they can."""
    return obstacle_of_kind(config, AdaptedParameter)


def check_variants(config: LoraConfig, sites: Sequence[Site]) -> None:
    """Refuse layers that cannot have what a configuration turns on."""
    for site in sites:
        found = obstacle_of_kind(config, site.adapted_class)
        if found is not None:
            setting, reason = found
            raise TargetError(
                f"Cannot adapt {site.path} with {setting}={getattr(config, setting)}: "
                f"{site.adapted_class.plain_class.__name__} {reason}, expected layers that can "
                f"have it. Leave {setting} out, or the layer with exclude_modules=[{site.path!r}]."
            )
