"""The table of initializations by the value of `init_lora_weights`."""

from collections.abc import Mapping

from lorakit.initialization.eva import Eva
from lorakit.initialization.loftq import Loftq
from lorakit.initialization.lora_ga import LoraGa
from lorakit.initialization.olora import Olora
from lorakit.initialization.pissa import Pissa
from lorakit.initialization.protocol import Initialization
from lorakit.initialization.random_factors import Gaussian, Kaiming, Orthogonal, RandomUpdate

INITIALIZATIONS: Mapping[bool | str, Initialization] = {
    True: Kaiming(),
    False: RandomUpdate(),
    "gaussian": Gaussian(),
    "orthogonal": Orthogonal(),
    "pissa": Pissa(),
    "olora": Olora(),
    "loftq": Loftq(),
    "eva": Eva(),
    "lora_ga": LoraGa(),
}
"""All of them, beside those with a number, "pissa_niter_<n>"."""


def initialization_of(value: bool | str) -> Initialization:
    """Return the initialization of a value of `init_lora_weights`.

    >>> initialization_of("pissa_niter_4")
    Pissa(iterations=4)
    """
    if isinstance(value, str) and value.startswith("pissa_niter_"):
        return Pissa(int(value.removeprefix("pissa_niter_")))
    return INITIALIZATIONS[value]
