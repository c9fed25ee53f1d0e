"""Everything offline, seeded and in one thread; fixtures are in `tests/fixtures`.

Every `tiny_*_dir` is a directory that `from_pretrained` loads (weights, config, tokenizer) and
that a recipe can name.
"""

import atexit
import gc
import multiprocessing.forkserver
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

# Makes the tables and model builders in tests/ importable: `from tiny_models import llama`.
sys.path.insert(0, str(Path(__file__).parent))

_CACHE = tempfile.mkdtemp(prefix="lorakit-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE
os.environ["LORAKIT_CACHE"] = os.path.join(_CACHE, "lorakit")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from fixtures.data import *  # noqa: E402, F403
from fixtures.figures import blank_pictures, saved_figures, uncoloured_pictures  # noqa: E402, F401
from fixtures.layers import group_sizes  # noqa: E402, F401
from fixtures.preferences import prepare_preferences  # noqa: E402, F401
from fixtures.runs import (  # noqa: E402, F401
    all_neutral_passages,
    blank_loss_plots,
    done,
    few_changes,
    few_neutral_passages,
    forked_commands,
    forked_workers,
    machines,
    python_of_forks,
    recipe,
    stop_after,
)
from fixtures.serving import adapter_folder, served, served_with  # noqa: E402, F401
from fixtures.tasks import jsonl, prepare, prepare_texts, recipe_of  # noqa: E402, F401

# Folders whose files share what takes long to start: a browser, Ray.
SHARING = ("tests/browser", "tests/unit/tuning")

# `make test` gives whole files to its workers in this order, the longest first: near the end only
# short files are left, so that all workers end at the same time.
LONG_FILES = (
    "end_to_end/test_launchers.py",
    "unit/tuning/test_search.py",
    "features/test_ray_serve.py",
    "interop/test_oracle.py",
    "end_to_end/test_ray_cluster.py",
    "interop/test_compile.py",
    "end_to_end/test_processes.py",
    "unit/ops/triton/test_triton_kernels.py",
    "unit/ops/test_skinny.py",
    "unit/tuning/test_study.py",
    "features/test_trained_initializations.py",
    "end_to_end/test_processes_resume.py",
    "unit/training/verdict/test_judge.py",
)

# Folders whose tests wait for servers and pages more than they compute.
WAITING = ("tests/unit/serving/", "tests/unit/studio/")


def _scope(node_id: str) -> str:
    """Return what one worker gets of a test's neighbours: its file, or a folder that shares."""
    file = node_id.partition("::")[0]
    return next((folder for folder in SHARING if file.startswith(f"{folder}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    """Let the workers be forks of one process, which imports the libraries for all of them."""
    from forked_python import forked_python
    from rewritten_tests import rewrite_tests

    multiprocessing.forkserver.ensure_running()  # imports them meanwhile
    rewrite_tests(config)
    stack = ExitStack()
    program = stack.enter_context(forked_python())
    config.add_cleanup(stack.close)
    for spec in specs:
        spec.python = program


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give whole files to the workers, and whole folders whose files share something."""
    from xdist.scheduler import LoadFileScheduling

    class FileScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return _scope(nodeid)

    return FileScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for examples in docstrings of the sources only, not of hundreds of test files."""
    found = yield
    return [each for each in found if type(each) is pytest.Module]


def pytest_collection_modifyitems(items):
    """Put the tests of long files first, and spread those that wait among those that compute."""
    places: dict[str, float] = {}
    for name in LONG_FILES:
        places.setdefault(_scope(f"tests/{name}"), len(places))
    first = len(places)
    rest = dict.fromkeys(scope for item in items if (scope := _scope(item.nodeid)) not in places)
    waiting = [scope for scope in rest if scope.startswith(WAITING)]
    for alike in (waiting, [scope for scope in rest if scope not in waiting]):
        for number, scope in enumerate(alike):
            places[scope] = first + number / len(alike)
    items.sort(key=lambda item: places[_scope(item.nodeid)])


def pytest_collection_finish():
    """Keep the garbage collector from walking libraries and thousands of tests again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_seeds_for_later():
    """Seed no device that is not there: torch would note the whole stack for one that may come."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_server():
    """Let computations of the studio be forks of the process from which programs are forks.

    Python has one such server; whoever comes first starts it. That of a worker is a fork itself.
    """
    from forked import LIBRARIES, PYTHON

    if sys.executable != PYTHON:
        multiprocessing.forkserver.ensure_running()
        multiprocessing.set_executable(PYTHON)
        sys.executable = PYTHON

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorakit.runs.warm_process._LIBRARIES", tuple(LIBRARIES))
        yield


@pytest.fixture(scope="session", autouse=True)
def _unflushed():
    """Leave files to the page cache: no test cuts the power, and a disk takes milliseconds each.

    Tests of what happens at a flush replace `os.fsync`; processes that tests start flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """Draw the same numbers in a test whatever ran before it."""
    import torch

    torch.manual_seed(0)
