"""The directory in which torch's inductor keeps compiled code.

torch 2.13 uses one directory for all instruction sets, and its keys do not tell them apart. Code
written for vectors of 8 numbers and compiled for vectors of 16 writes past the end of its arrays.
"""

import getpass
import os
import re
import tempfile

_CAPABILITY, _DIRECTORY = "ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR"


def separate_inductor_cache() -> None:
    """Use another directory if the environment names the instruction set that torch shall use.

    Keeps the user's directory if there is one. Takes effect only before anything is compiled.
    """
    capability = re.sub(r"\W", "", os.environ.get(_CAPABILITY, ""))
    if capability and _DIRECTORY not in os.environ:
        name = f"torchinductor_{getpass.getuser()}_{capability}"
        os.environ[_DIRECTORY] = os.path.join(tempfile.gettempdir(), name)
