"""A recipe that starts from an adapter."""

import pytest


@pytest.fixture
def start(done, recipe):
    """Make a recipe that starts from an adapter; `done` by default."""
    first = str(done[0].run_dir)
    return lambda path=first, **changes: recipe("second", lora={}, start_from=path, **changes)
