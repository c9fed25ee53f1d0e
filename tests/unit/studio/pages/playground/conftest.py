"""A folder with adapters of all tasks, and the playground behind the page."""

import json
import shutil

import pytest


@pytest.fixture
def root(studio, adapter_folder):
    """The studio's folder, with adapters of all tasks."""
    shutil.copytree(adapter_folder, studio.root, dirs_exist_ok=True)
    for name in ("german", "french"):
        settings = {"task_type": "CAUSAL_LM", "format": "messages"}
        (studio.root / name / "lorakit.json").write_text(json.dumps(settings))
    return studio.root


@pytest.fixture
def state(studio):
    """The playground behind the page, closed after the test."""
    from lorakit.studio.served_models import playground_of

    made = playground_of(studio)
    yield made
    made.close()
