"""The values of `init_lora_weights`, and what is to be known of them."""

import re
from collections.abc import Iterable

INITIALIZATIONS = ("gaussian", "orthogonal", "pissa", "olora", "loftq", "eva", "lora_ga")
"""Those with a name of their own, beside true, false and "pissa_niter_<n>"."""

INITIALIZED_ON_DATA = ("eva", "lora_ga")
"""Those that need batches."""

SETTINGS_OF = {"eva_rho": ("eva",), "init_batches": INITIALIZED_ON_DATA}
"""Settings that are about some of them only."""


def is_rewriting(initialization: bool | str) -> bool:
    """Return whether PEFT changes the base for an initialisation, by what can be computed of it.

    The factors in such a file are B and A of W0 + s (B A - B0 A0), and lack B0 and A0.

    >>> [is_rewriting(init) for init in ("pissa", "pissa_niter_4", "olora", "gaussian", True)]
    [True, True, True, False, False]
    """
    return isinstance(initialization, str) and initialization.startswith(("pissa", "olora"))


def known_initialization(value: bool | str) -> bool | str:
    """Return a value of `init_lora_weights` as it is.

    Raises:
        ValueError: It is none; says what is.
    """
    if isinstance(value, bool) or value in INITIALIZATIONS:
        return value
    if not re.fullmatch(r"pissa_niter_[0-9]+", value):
        raise ValueError(
            f"expected true, false, {', '.join(INITIALIZATIONS)}, or pissa_niter_ and a number"
        )
    return value


def require_settings_of(given: Iterable[str], initialization: bool | str) -> None:
    """Refuse settings that are about other initialisations.

    Args:
        given: Names of settings, of those in `SETTINGS_OF`.
        initialization: The value of `init_lora_weights`.

    Raises:
        ValueError: Names the first that does not fit.
    """
    for key in sorted(given):
        if initialization not in SETTINGS_OF[key]:
            raise ValueError(
                f"{key} is a setting of init_lora_weights {' and '.join(SETTINGS_OF[key])}, got "
                f"init_lora_weights={initialization!r}; leave {key} out"
            )
