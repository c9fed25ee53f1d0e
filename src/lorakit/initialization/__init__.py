"""Initializations: the values of `init_lora_weights`, each a class behind one protocol.

To add one:

1. Write `initialization/<name>.py`: a class that derives from `Initialization` (`protocol.py`).
   It says what it is computed from (`source`), which layers it refuses (`check`) and whether its
   update is measured from its first factors, and it computes these (`factors`).
2. Add a line to the table in `initialization/table.py`.
3. Name it in `config/initialization_names.py`, which checks recipes without torch.
"""

from lorakit.initialization.protocol import FreshUpdate, Initialization
from lorakit.initialization.table import INITIALIZATIONS, initialization_of

__all__ = ["INITIALIZATIONS", "FreshUpdate", "Initialization", "initialization_of"]
