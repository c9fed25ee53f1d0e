"""Makes the tables and model builders in tests/ importable: `from tiny_models import llama`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
