"""Threads that share an arena find the memory that others have freed."""

import platform
import subprocess
import sys

import pytest

from lorakit.libraries import memory_arenas

_PROGRAM = """
import resource, threading
from lorakit.libraries.memory_arenas import keep_one_arena

def use():
    buffers = [bytes(16 << 20) for _ in range(8)]
    buffers = [bytearray(one) for one in buffers]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_one_arena()
print([faults() for _ in range(4)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has arenas")
def test_a_thread_gets_the_pages_that_an_ended_one_has_freed():
    found = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) < 1000  # of 65,536 that it uses


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory_arenas.keep_one_arena()
