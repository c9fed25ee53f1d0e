"""The library of native/*.c, compiled at first use by the machine's own compiler.

It is in the user's cache directory. Its name encodes the sources, the compiler, the processor and
the digest of its bytes, so it is compiled once for each, and a truncated or changed library is
compiled again. Since loading a library runs it, only a directory that nobody else can write to is
used; if the cache is not one, is full or forbids running code, a temporary directory of this
process is used instead.

It shares the OpenMP threads that torch has started: a second pool would compete for the cores.
Without gcc or such an OpenMP only speed is lost: `skinny.py` and `quantized.py` use torch
operations.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lorakit.files.atomic import lasting_scratch_directory, scratch_directory
from lorakit.files.private_files import is_private
from lorakit.ops.native import openmp

_SOURCES = Path(__file__).parent
_FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC"),
)
_COMPILE_TIMEOUT_S = 120
_MEMORY_DISK = Path("/dev/shm")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, or None if it is unavailable; `unavailable` says why."""
    return _library_or_reason()[0]


def unavailable() -> str | None:
    """Return why the compiled products cannot be used on this machine, or None if they can.

    This compiles them if necessary. LORAKIT_CPU_KERNELS=0 turns them off.
    """
    return _library_or_reason()[1]


@cache
def _library_or_reason() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("LORAKIT_CPU_KERNELS") == "0":
        return None, "LORAKIT_CPU_KERNELS=0 turns them off"
    compiler = _compiler()
    if compiler is None:
        return None, "there is no gcc"
    runtime = openmp.runtime()
    if runtime is None:
        return None, "torch runs without OpenMP threads that gcc's code could share"
    reason = "there is no directory that nobody else can write to"
    for directory in _directories():
        try:
            return ctypes.CDLL(str(_library_in(directory, compiler, runtime))), None
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            reason = f"compiling or loading them failed: {output.strip()[:500]}"
            if isinstance(error, subprocess.SubprocessError) and not _ran_out_of_room(output):
                break
    return None, reason


def _ran_out_of_room(output: str) -> bool:
    return any(os.strerror(number) in output for number in _NO_ROOM)


# ---- directories ----


def _directories() -> Iterator[Path]:
    """Yield the directories to try: the user's cache, then temporary ones of this process."""
    cached = _cache_directory()
    if cached is not None:
        yield cached
    for parent in (Path(tempfile.gettempdir()), _MEMORY_DISK):
        try:
            directory = lasting_scratch_directory("lorakit-", parent)
        except OSError:
            continue
        if is_private(directory):
            yield directory


def _cache_directory() -> Path | None:
    """Return lorakit's directory in the user's cache, created if needed; None if unusable."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(home) / "lorakit"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        usable = os.access(directory, os.W_OK) and is_private(directory)
    except (OSError, RuntimeError):  # a read-only home, or a user without one
        return None
    return directory if usable else None


def _library_in(directory: Path, compiler: str, runtime: str) -> Path:
    """Return the library in a directory, and compile it if no intact one is there."""
    stem = f"kernels-{_identity(compiler, runtime)}"
    for path in directory.glob(f"{stem}-*.so"):
        if is_private(path) and path.name == f"{stem}-{_digest(path)}.so":
            return path
        path.unlink(missing_ok=True)
    return _compile(compiler, runtime, directory, stem)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


# ---- compilation ----


@cache
def _compiler() -> str | None:
    for name in (os.environ.get("CC"), "gcc", "cc"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        try:
            version = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
        except OSError:
            continue
        if "Free Software Foundation" in version.stdout:  # gcc, under any name
            return path
    return None


def _identity(compiler: str, runtime: str) -> str:
    """Return a short name for everything the compiled code depends on."""
    key = hashlib.sha256()
    for source in sorted(_SOURCES.glob("*.[ch]")):
        key.update(source.name.encode() + source.read_bytes())
    stamp = Path(compiler).resolve().stat()
    key.update(
        repr((_FLAGS, compiler, (stamp.st_size, stamp.st_mtime_ns), runtime, processor())).encode()
    )
    return key.hexdigest()[:20]


def processor() -> str:
    """Return what code for this processor depends on: machines may share a cache."""
    lines = processor_lines("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({" ".join(sorted(line.split())) for line in lines}))


def processor_lines(*names: str) -> list[str]:
    """Return the lines of /proc/cpuinfo that begin with one of these names; none without it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return [line for line in lines if line.startswith(names)]


def _compile(compiler: str, runtime: str, directory: Path, stem: str) -> Path:
    """Compile and link; the file appears atomically, even if several processes create it."""
    with scratch_directory("compiling-", directory) as scratch:
        linked = scratch / "kernels.so"
        compiled = {source: scratch / f"{source.stem}.o" for source in sorted(_SOURCES.glob("*.c"))}
        # Linked to the runtime that torch has loaded; -fopenmp would link to gcc's.
        for command in (
            *(
                [compiler, *_FLAGS, "-c", str(source), "-o", str(target)]
                for source, target in compiled.items()
            ),
            [compiler, "-shared", *map(str, compiled.values()), runtime, "-o", str(linked)],
        ):
            subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                timeout=_COMPILE_TIMEOUT_S,
                env={**os.environ, "TMPDIR": str(scratch)},
            )
        linked.chmod(0o700)
        with linked.open("rb") as file:
            os.fsync(file.fileno())
        path = directory / f"{stem}-{_digest(linked)}.so"
        os.replace(linked, path)
    return path
