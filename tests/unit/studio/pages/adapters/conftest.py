"""A folder with a run, and adapters outside of runs."""

import shutil

import pytest


@pytest.fixture
def root(studio, adapter_folder):
    """The studio's folder with a run, and adapters outside of runs."""
    shutil.copytree(adapter_folder / "german", studio.root / "runs" / "german" / "adapter")
    (studio.root / "runs" / "german" / "recipe.yaml").write_text("model: x\n")
    for name in ("french", "mood"):
        shutil.copytree(adapter_folder / name, studio.root / name)
    return studio.root


@pytest.fixture
def commands(root, forked_commands):
    """Return the commands that the page has started."""
    from lorakit.studio.pages.adapters.commands import _started

    return lambda: _started[root]
