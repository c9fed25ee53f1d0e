"""A process is recognized by its id and its start."""

import os
import signal
import subprocess
import sys

from lorakit.libraries.process_identity import is_same_process, process_identity, send_signal


def test_a_process_keeps_its_identity_until_it_ends():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        identity = process_identity(process.pid)
        assert identity != process_identity(os.getpid())
        assert is_same_process(process.pid, identity)
        assert not send_signal(process.pid, "an earlier one", signal.SIGKILL)
        assert send_signal(process.pid, identity, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_identity(process.pid) is None  # although its parent has not noticed
        assert not send_signal(process.pid, identity)
    assert process_identity(process.pid) is None
    assert not send_signal(process.pid, identity)
