"""Where the compiled products come from, and what happens where they cannot be had."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from forked import Program
from lorakit.files import atomic, private_files
from lorakit.ops import skinny
from lorakit.ops.native import compiled_library, cpu_kernels, openmp
from tolerances import TOLERANCE, largest_error

CACHED = (
    cpu_kernels.load,
    compiled_library.library,
    compiled_library._library_or_reason,
    compiled_library._compiler,
)


def forget():
    for function in CACHED:
        function.cache_clear()


@pytest.fixture(scope="module")
def few_sources(tmp_path_factory):
    """The sources of what `assert_right` computes, with all headers."""
    folder = tmp_path_factory.mktemp("native")
    for path in compiled_library._SOURCES.glob("*.[ch]"):
        if path.suffix == ".h" or path.stem in ("skinny", "up_backward"):
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch, few_sources):
    """An empty cache directory, for a module that has forgotten what it found before."""
    for name in ("LORAKIT_CPU_KERNELS", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Where a library comes from is the same at any speed and size, and this one is compiled in a
    # tenth of the time. All tests of what it computes have it as users do.
    quick = tuple("-O0" if flag == "-O3" else flag for flag in compiled_library._FLAGS)
    monkeypatch.setattr(compiled_library, "_FLAGS", quick)
    monkeypatch.setattr(compiled_library, "_SOURCES", few_sources)
    forget()
    yield tmp_path / "cache" / "lorakit"
    monkeypatch.undo()
    forget()


@pytest.fixture
def gcc(cache):
    path = compiled_library._compiler()
    if path is None:
        pytest.skip("there is no gcc to compile with")
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for a library that was compiled."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def library(gcc, cache, kept):
    """The library in the cache and in this process; it is compiled for the first test alone."""
    if earlier := list(kept.iterdir()):
        cache.mkdir(parents=True, mode=0o700)
        shutil.copy(earlier[0], cache)
    assert compiled_library.unavailable() is None
    (found,) = cache.iterdir()
    shutil.copy(found, kept)
    return found


@pytest.fixture
def only_compiler(tmp_path, monkeypatch):
    """Return a function that makes a shell script the only compiler there is."""

    def make(script, name="gcc"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return path

    return make


IS_GCC = 'if [ "$1" = --version ]; then echo "Free Software Foundation"; exit; fi\n'


def assert_right():
    """The low-rank path works, with or without compiled products."""
    torch.manual_seed(0)
    x, A, seed = torch.randn(20, 30), torch.randn(4, 30), torch.tensor(9)
    grad_x, grad_u = torch.zeros(20, 30), torch.randn(20, 4)
    wide_grad_x = grad_x.double()
    wide = x.double(), A.double()
    u = skinny.down(x, A, 0.3, seed)
    grad_A = skinny.down_backward_(x, A, grad_u, 0.3, seed, grad_x, True)
    wide_u = skinny.down(*wide, 0.3, seed)
    wide_grad_A = skinny.down_backward_(*wide, grad_u.double(), 0.3, seed, wide_grad_x, True)
    for got, expected in ((u, wide_u), (grad_A, wide_grad_A), (grad_x, wide_grad_x)):
        assert largest_error(got, expected) <= TOLERANCE[torch.float32]


def assert_eager(reason):
    assert reason in compiled_library.unavailable()
    assert cpu_kernels.load() is None
    assert_right()


def test_they_are_compiled_once_into_the_cache(gcc, cache):
    assert compiled_library.unavailable() is None
    (library,) = cache.iterdir()
    assert library.suffix == ".so" and library.stem.endswith(compiled_library._digest(library))
    assert cache.stat().st_mode & 0o077 == 0  # nobody else may put a library there
    written = library.stat().st_mtime_ns, library.stat().st_ino
    assert isinstance(cpu_kernels.load(), cpu_kernels.CpuKernels)
    assert cpu_kernels.load() is cpu_kernels.load()
    assert_right()
    forget()  # as another process
    assert cpu_kernels.load() is not None
    assert (library.stat().st_mtime_ns, library.stat().st_ino) == written
    assert list(cache.iterdir()) == [library]


def test_without_a_compiler_torch_computes(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert_eager("there is no gcc")
    assert not cache.exists()


def test_another_compiler_is_not_taken_for_gcc(cache, only_compiler):
    # Other compilers bring their own OpenMP runtime.
    only_compiler('echo "clang version 19"', "cc")
    assert_eager("there is no gcc")


def test_a_compiler_that_cannot_be_started_is_passed_over(cache, only_compiler):
    only_compiler("").write_bytes(b"\x7fELF and nothing more")
    assert_eager("there is no gcc")


def test_cc_comes_before_gcc(cache, only_compiler, monkeypatch):
    only_compiler(IS_GCC, "gcc")
    other = only_compiler(IS_GCC, "gcc-14")
    monkeypatch.setenv("CC", "gcc-14")
    assert compiled_library._compiler() == str(other)
    compiled_library._compiler.cache_clear()
    monkeypatch.setenv("CC", "no such program")
    assert compiled_library._compiler() == str(other.with_name("gcc"))


def test_the_switch_turns_them_off(cache, monkeypatch):
    monkeypatch.setenv("LORAKIT_CPU_KERNELS", "0")
    assert_eager("LORAKIT_CPU_KERNELS=0 turns them off")
    assert not cache.exists()


def test_without_openmp_threads_to_share(cache, monkeypatch):
    monkeypatch.setattr(openmp, "runtime", lambda: None)
    assert_eager("without OpenMP threads")


def test_a_compiler_that_fails_is_quoted(cache, only_compiler):
    only_compiler(IS_GCC + 'echo "cc1: out of disk" >&2; exit 1')
    assert_eager("compiling or loading them failed: cc1: out of disk")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(cache, only_compiler, monkeypatch):
    monkeypatch.setattr(compiled_library, "_COMPILE_TIMEOUT_S", 0.2)
    only_compiler(IS_GCC + "exec /bin/sleep 60")
    assert_eager("timed out after 0.2 seconds")
    assert list(cache.iterdir()) == []


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the C sources that a test may change."""
    copy = tmp_path / "native"
    shutil.copytree(compiled_library._SOURCES, copy)
    monkeypatch.setattr(compiled_library, "_SOURCES", copy)
    return copy


def test_sources_that_do_not_compile(gcc, sources):
    (sources / "skinny.c").write_text("this is not C;", encoding="utf-8")
    assert_eager("compiling or loading them failed: ")
    assert "skinny.c" in compiled_library.unavailable()


def test_a_library_that_cannot_be_loaded(gcc, sources):
    code = "void nowhere(void); int lorakit_down(void) { nowhere(); return 0; }"
    (sources / "skinny.c").write_text(code, encoding="utf-8")
    assert_eager("undefined symbol: nowhere")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The parent of temporary directories, and what is removed when the process ends."""
    parent, unfinished = tmp_path / "temporary", set()
    parent.mkdir()
    monkeypatch.setattr(compiled_library.tempfile, "tempdir", str(parent))
    monkeypatch.setattr(atomic, "_unfinished", unfinished)
    monkeypatch.setattr(atomic.atexit, "register", lambda *_, **__: None)
    return parent, unfinished


def make_useless(case, cache, monkeypatch):
    """Make the cache directory one that cannot be used."""
    home = cache.parent
    if case == "a file in its place":
        home.write_text("not a directory", encoding="utf-8")
    elif case == "read-only":
        access = os.access
        monkeypatch.setattr(
            compiled_library.os, "access", lambda path, mode: path != cache and access(path, mode)
        )
    elif case == "others may write to it":
        cache.mkdir(parents=True)
        cache.chmod(0o777)
    elif case == "others may rename it":
        cache.mkdir(parents=True, mode=0o700)
        home.chmod(0o777)
    elif case == "it belongs to somebody else":
        real = private_files.os.lstat

        def owned(path, **options):
            found = real(path, **options)
            is_cache = str(path) == str(cache)
            return os.stat_result((*found[:4], found[4] + is_cache, *found[5:]))

        monkeypatch.setattr(private_files.os, "lstat", owned)
    else:

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)


USELESS = (
    *("a file in its place", "read-only", "no home"),
    *("others may write to it", "others may rename it", "it belongs to somebody else"),
)


@pytest.mark.parametrize("case", USELESS)
def test_without_a_private_cache_they_are_compiled_for_this_process(
    gcc, cache, temporary, monkeypatch, case
):
    make_useless(case, cache, monkeypatch)
    parent, unfinished = temporary
    directories = list(compiled_library._directories())
    assert directories[0].parent == parent and directories[0].name.startswith("lorakit-")
    assert all(directory.stat().st_mode & 0o077 == 0 for directory in directories)
    assert unfinished == set(directories)
    atomic.remove_unfinished()  # as where a signal ends the process
    assert not any(directory.exists() for directory in directories)


def test_a_library_planted_in_an_open_cache_is_not_run(gcc, cache, library, temporary):
    witness = cache.parent / "it ran"
    code = f'__attribute__((constructor)) void run(void) {{ fopen("{witness}", "w"); }}'
    source = cache.parent / "planted.c"
    source.write_text(f"#include <stdio.h>\n{code}\n", encoding="utf-8")
    planted = cache.parent / "planted.so"
    subprocess.run([gcc, "-shared", "-fPIC", str(source), "-o", str(planted)], check=True)
    for where in (library.name, f"{library.stem[:-32]}{compiled_library._digest(planted)}.so"):
        (cache / where).unlink(missing_ok=True)  # this process has mapped the library itself
        shutil.copy(planted, cache / where)
    cache.chmod(0o777)
    forget()
    assert compiled_library.unavailable() is None
    assert_right()
    assert not witness.exists()


@pytest.mark.parametrize("damage", ["cut short", "emptied", "one bit flipped"])
def test_a_damaged_library_is_compiled_again(cache, library, damage):
    whole = library.read_bytes()
    flipped = bytes([whole[5000] ^ 1])
    library.unlink()  # this process has mapped the file itself
    library.write_bytes(
        {"cut short": whole[:4096], "emptied": b""}.get(
            damage, whole[:5000] + flipped + whole[5001:]
        )
    )
    forget()
    assert compiled_library.unavailable() is None
    assert_right()
    (again,) = cache.iterdir()
    assert again.stem.endswith(compiled_library._digest(again))


def test_a_full_cache_leaves_room_elsewhere(gcc, cache, temporary, monkeypatch):
    real = compiled_library._compile

    def full(compiler, runtime, directory, stem):
        if directory == cache:
            message = "fatal error: error writing to skinny.s: No space left on device"
            raise subprocess.CalledProcessError(1, compiler, stderr=message)
        return real(compiler, runtime, directory, stem)

    monkeypatch.setattr(compiled_library, "_compile", full)
    assert compiled_library.unavailable() is None
    assert list(cache.iterdir()) == [] and [*temporary[0].glob("lorakit-*/kernels-*.so")]


def test_no_room_anywhere_is_said(gcc, cache, temporary, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled_library, "_compile", full)
    assert_eager("compiling or loading them failed: [Errno 28] No space left on device")


def key():
    return compiled_library._identity(compiled_library._compiler(), "runtime")


def test_the_name_tells_sources_flags_compiler_and_processor(gcc, sources, monkeypatch):
    first = key()
    assert key() == first
    for source in sorted(sources.iterdir()):
        before = source.read_bytes()
        source.write_bytes(before + b"\n")
        assert key() != first, source.name
        source.write_bytes(before)
    assert key() == first
    seen = {first}
    monkeypatch.setattr(compiled_library, "_FLAGS", (*compiled_library._FLAGS, "-g"))
    seen.add(key())
    monkeypatch.setattr(compiled_library, "processor", lambda: "another")
    seen.add(key())
    monkeypatch.setattr(compiled_library, "_compiler", lambda: sys.executable)
    seen.add(key())
    assert len(seen) == 4


def test_the_processor_is_the_same_whatever_the_order_of_its_flags():
    assert compiled_library.processor() == compiled_library.processor()
    assert compiled_library.processor().startswith(compiled_library.platform.machine())


def test_threads_that_ask_at_once_all_get_them(gcc, cache):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: cpu_kernels.load(), range(2)))
    assert None not in found
    assert [path.suffix for path in cache.iterdir()] == [".so"]


USE = """
import json, os, torch, sys
import lorakit, lorakit.ops, lorakit.layers, lorakit.injection
from lorakit.ops.native import compiled_library; from lorakit.ops import skinny
quick = tuple("-O0" if flag == "-O3" else flag for flag in compiled_library._FLAGS)
compiled_library._FLAGS = quick  # as in the fixture `cache`
cache = os.path.join(os.environ["XDG_CACHE_HOME"], "lorakit")
before = os.path.exists(cache)
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
lorakit.add_adapter(model, lorakit.LoraConfig(r=2, target_modules=["0"]))
before = before or os.path.exists(cache)
model(torch.ones(3, 8)).sum().backward()
print(json.dumps([before, os.listdir(cache), compiled_library.unavailable()]))
"""


@pytest.mark.slow(reason="imports torch in a new process")
def test_processes_that_start_at_once_and_nothing_is_compiled_before_the_first_use(gcc, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "fresh")}
    with (
        Program(USE, environment=environment) as first,
        Program(USE, environment=environment) as second,
    ):
        ended = [first.finished(), second.finished()]
    assert [one.returncode for one in ended] == [0, 0], ended
    reports = [json.loads(one.stdout.splitlines()[-1]) for one in ended]
    assert all(reason is None for _, _, reason in reports)
    assert not reports[0][0] or not reports[1][0]  # the first found no library when it began
    assert len(list((tmp_path / "fresh" / "lorakit").iterdir())) == 1
