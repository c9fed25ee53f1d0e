"""The values of `init_lora_weights`, and the settings that belong to some of them."""

import re
from collections.abc import Iterable

INITIALIZATIONS = ("gaussian", "orthogonal", "pissa", "olora", "loftq", "eva", "lora_ga")
"""Names beside true, false and "pissa_niter_<n>"; `lorakit.initialization` has a class for each."""

SETTINGS_OF = {"eva_rho": ("eva",), "init_batches": ("eva", "lora_ga")}
"""Settings that apply to some initializations only."""


def check_initialization(value: bool | str) -> bool | str:
    """Return a value of `init_lora_weights` unchanged.

    Raises:
        ValueError: It is not one; lists the valid values.
    """
    if isinstance(value, bool) or value in INITIALIZATIONS:
        return value
    if not re.fullmatch(r"pissa_niter_[0-9]+", value):
        raise ValueError(
            f"expected true, false, {', '.join(INITIALIZATIONS)}, or pissa_niter_ and a number"
        )
    return value


def require_settings_of(given: Iterable[str], initialization: bool | str) -> None:
    """Refuse settings that belong to another initialization.

    Args:
        given: Names of settings in `SETTINGS_OF`.
        initialization: The value of `init_lora_weights`.

    Raises:
        ValueError: Names the first that does not belong to it.
    """
    for key in sorted(given):
        if initialization not in SETTINGS_OF[key]:
            raise ValueError(
                f"{key} is a setting of init_lora_weights {' and '.join(SETTINGS_OF[key])}, got "
                f"init_lora_weights={initialization!r}; leave {key} out"
            )
