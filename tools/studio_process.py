"""Start a studio, and count the processor time of it and of the browser that shows it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def studio(root: Path) -> Iterator[tuple[str, float, psutil.Process]]:
    """Start a studio; yield its link, when it was started, and its process."""
    words = [sys.executable, "-m", "lorakit", "studio", str(root), "--no-browser", "--port", "0"]
    began_s = time.monotonic()
    quiet = subprocess.DEVNULL  # what it says between the rows
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=quiet, text=True, env=with_bytecode()
    ) as process:
        try:
            link = next(filter(None, map(find_link, process.stdout or ())), None)
            if link is None:
                sys.exit(f"The studio did not start; run `lorakit studio {root}` to see why.")
            yield link, began_s, psutil.Process(process.pid)
        finally:
            process.terminate()


def with_bytecode() -> dict[str, str]:
    """Return the environment in which Python reads and writes compiled files, as by default."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def find_link(line: str) -> str | None:
    """Return the link in a line that the studio prints."""
    found = re.search(r"http://\S+token=\S+", line)
    return found[0] if found else None


def browsers() -> list[psutil.Process]:
    """Return the processes of the browser, which may run on another machine."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if one.is_running() and "chrom" in name_of(one)]


def name_of(process: psutil.Process) -> str:
    """Return the name of a process, empty if it has ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the seconds of a core that processes have used; one that has ended counts nothing."""
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total
