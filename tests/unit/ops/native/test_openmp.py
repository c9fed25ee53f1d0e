"""The OpenMP threads that torch computes with."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lorakit.ops.native import compiled_library, openmp

SECOND_RUNTIME = """
import os
import sklearn.metrics  # brings its own OpenMP runtime
import torch
from lorakit.ops import skinny
from lorakit.ops.native import cpu_kernels, openmp

torch.set_num_threads(3)
x, A = torch.randn(4000, 64), torch.randn(8, 64)
x @ x.t()  # torch's threads have been started
if cpu_kernels.load() is None:
    print("none")
else:
    before = len(os.listdir("/proc/self/task"))
    skinny.down(x, A)
    print(openmp.runtime(), len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.slow(reason="imports torch in a new process")
def test_threads_are_torch_s_own_where_another_library_brings_more():
    done = subprocess.run(
        [sys.executable, "-c", SECOND_RUNTIME], capture_output=True, text=True, check=True
    )
    printed = done.stdout.split()
    if printed == ["none"]:
        pytest.skip(f"no compiled products: {compiled_library.unavailable()}")
    runtime, started = printed
    assert Path(runtime).is_relative_to(Path(torch.__file__).resolve().parent)
    assert started == "0"


def test_the_runtime_is_found_in_an_environment_behind_a_link(tmp_path, monkeypatch):
    import sklearn.metrics  # noqa: F401 - brings its own OpenMP runtime

    runtime = openmp.runtime()
    if runtime is None:
        pytest.skip("torch has no OpenMP runtime here that compiled code could share")
    packages = tmp_path / "packages"
    packages.symlink_to(Path(torch.__file__).resolve().parents[1])
    monkeypatch.setattr(torch, "__file__", str(packages / "torch" / "__init__.py"))
    assert openmp.runtime() == runtime


def tasks():
    return set(os.listdir("/proc/self/task"))


def run_in_thread(function):
    """Return what a function in a new thread returns."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def wait_until_ended(threads, seconds=10.0):
    """Wait until threads are gone, which they are soon after they have been told to end."""
    until = time.monotonic() + seconds
    while threads & tasks() and time.monotonic() < until:
        time.sleep(0.01)
    return not threads & tasks()


def test_threads_end_and_start_again(two_threads):
    if openmp._pause() is None:
        pytest.skip("torch runs without gcc's OpenMP")
    x = torch.randn(400, 400)

    def compute():
        before = tasks()
        x.exp().sum()
        helpers = tasks() - before
        openmp.end_waiting_threads()
        have_ended = wait_until_ended(helpers)
        before = tasks()
        return helpers, have_ended, x.exp(), tasks() - before

    helpers, have_ended, y, others = run_in_thread(compute)
    assert helpers and have_ended
    assert others
    torch.testing.assert_close(y, x.exp())


def test_a_thread_that_has_none_is_left_alone():
    run_in_thread(openmp.end_waiting_threads)
    run_in_thread(lambda: (openmp.end_waiting_threads(), openmp.end_waiting_threads()))


def test_another_runtime_is_left_alone(monkeypatch):
    monkeypatch.setattr(openmp, "runtime", lambda: "/usr/lib/libomp.so")
    assert openmp._function.__wrapped__("omp_set_num_threads") is None
    monkeypatch.setattr(openmp, "runtime", lambda: None)
    assert openmp._function.__wrapped__("omp_set_num_threads") is None


def test_a_thread_that_computes_alone_starts_no_others(two_threads):
    if openmp._function("omp_set_num_threads") is None:
        pytest.skip("torch runs without gcc's OpenMP")
    x = torch.randn(400, 400)

    def compute():
        openmp.compute_alone()
        before = tasks()
        y = x.isfinite() & (x + 1 == x.clone() + 1)
        return y, torch.get_num_threads(), tasks() - before

    y, threads, helpers = run_in_thread(compute)
    assert y.all() and threads == 1 and not helpers
    assert run_in_thread(torch.get_num_threads) == torch.get_num_threads() == 2


def test_a_thread_can_compute_with_all_again(two_threads):
    if openmp._function("omp_set_num_threads") is None:
        pytest.skip("torch runs without gcc's OpenMP")

    def compute():
        openmp.compute_alone()
        openmp.compute_with(2)
        return torch.get_num_threads()

    assert run_in_thread(compute) == 2
