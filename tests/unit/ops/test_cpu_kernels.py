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

from lorakit.ops import cpu_kernels, skinny
from tolerances import TOLERANCE, largest_error

CACHED = ("load", "unavailable", "_compiler", "_compiled_path", "_cache_directory")


def forget():
    for name in CACHED:
        getattr(cpu_kernels, name).cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, for a module that has forgotten what it found before."""
    for name in ("LORAKIT_CPU_KERNELS", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "lorakit"
    monkeypatch.undo()
    forget()


@pytest.fixture
def gcc(cache):
    path = cpu_kernels._compiler()
    if path is None:
        pytest.skip("there is no gcc")
    return path


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
    assert reason in cpu_kernels.unavailable()
    assert cpu_kernels.load() is None
    assert_right()


def test_they_are_compiled_once_into_the_cache(gcc, cache):
    assert cpu_kernels.unavailable() is None
    (library,) = cache.iterdir()
    assert library == cpu_kernels._compiled_path() and library.suffix == ".so"
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
    # Other compilers bring an OpenMP runtime of their own.
    only_compiler('echo "clang version 19"', "cc")
    assert_eager("there is no gcc")


def test_a_compiler_that_cannot_be_started_is_passed_over(cache, only_compiler):
    only_compiler("").write_bytes(b"\x7fELF and nothing more")
    assert_eager("there is no gcc")


def test_cc_comes_before_gcc(cache, only_compiler, monkeypatch):
    only_compiler(IS_GCC, "gcc")
    other = only_compiler(IS_GCC, "gcc-14")
    monkeypatch.setenv("CC", "gcc-14")
    assert cpu_kernels._compiler() == str(other)
    cpu_kernels._compiler.cache_clear()
    monkeypatch.setenv("CC", "no such program")
    assert cpu_kernels._compiler() == str(other.with_name("gcc"))


def test_the_switch_turns_them_off(cache, monkeypatch):
    monkeypatch.setenv("LORAKIT_CPU_KERNELS", "0")
    assert_eager("LORAKIT_CPU_KERNELS=0 turns them off")
    assert not cache.exists()


def test_without_openmp_threads_to_share(cache, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_openmp_runtime", lambda: None)
    assert_eager("without OpenMP threads")


SECOND_RUNTIME = """
import os
import sklearn.metrics  # brings an OpenMP runtime of its own
import torch
from lorakit.ops import cpu_kernels, skinny

torch.set_num_threads(3)
x, A = torch.randn(4000, 64), torch.randn(8, 64)
x @ x.t()  # torch's threads have been started
if cpu_kernels.load() is None:
    print("none")
else:
    before = len(os.listdir("/proc/self/task"))
    skinny.down(x, A)
    print(cpu_kernels._openmp_runtime(), len(os.listdir("/proc/self/task")) - before)
"""


def test_threads_are_torch_s_own_where_another_library_brings_more():
    done = subprocess.run(
        [sys.executable, "-c", SECOND_RUNTIME], capture_output=True, text=True, check=True
    )
    printed = done.stdout.split()
    if printed == ["none"]:
        pytest.skip("no compiled products")
    runtime, started = printed
    assert Path(runtime).is_relative_to(Path(torch.__file__).resolve().parent)
    assert started == "0"


def test_torch_s_runtime_is_found_in_an_environment_behind_a_link(tmp_path, monkeypatch):
    import sklearn.metrics  # noqa: F401 - brings an OpenMP runtime of its own

    runtime = cpu_kernels._openmp_runtime()
    if runtime is None:
        pytest.skip("no OpenMP runtime to share")
    packages = tmp_path / "packages"
    packages.symlink_to(Path(torch.__file__).resolve().parents[1])
    monkeypatch.setattr(torch, "__file__", str(packages / "torch" / "__init__.py"))
    assert cpu_kernels._openmp_runtime() == runtime


def test_a_compiler_that_fails_is_quoted(cache, only_compiler):
    only_compiler(IS_GCC + 'echo "cc1: out of disk" >&2; exit 1')
    assert_eager("compiling or loading them failed: cc1: out of disk")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(cache, only_compiler, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_COMPILE_TIMEOUT_S", 0.2)
    only_compiler(IS_GCC + "exec /bin/sleep 60")
    assert_eager("timed out after 0.2 seconds")
    assert list(cache.iterdir()) == []


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the C sources that a test may change."""
    copy = tmp_path / "native"
    shutil.copytree(cpu_kernels._SOURCES, copy)
    monkeypatch.setattr(cpu_kernels, "_SOURCES", copy)
    return copy


def test_sources_that_do_not_compile(gcc, sources):
    (sources / "skinny.c").write_text("this is not C;", encoding="utf-8")
    assert_eager("compiling or loading them failed: ")
    assert "skinny.c" in cpu_kernels.unavailable()


def test_a_library_that_cannot_be_loaded(gcc, sources):
    code = "void nowhere(void); int lorakit_down(void) { nowhere(); return 0; }"
    (sources / "skinny.c").write_text(code, encoding="utf-8")
    assert_eager("undefined symbol: nowhere")


@pytest.mark.parametrize("case", ["a file in its place", "read-only", "no home"])
def test_without_a_cache_directory_they_are_compiled_for_this_process(
    gcc, cache, tmp_path, monkeypatch, case
):
    monkeypatch.setattr(cpu_kernels.tempfile, "tempdir", str(tmp_path))
    if case == "a file in its place":
        cache.parent.write_text("not a directory", encoding="utf-8")
    elif case == "read-only":
        monkeypatch.setattr(cpu_kernels.os, "access", lambda path, mode: False)
    else:

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    removed_at_exit = []
    monkeypatch.setattr(
        cpu_kernels.atexit, "register", lambda *args, **_: removed_at_exit.append(args)
    )
    monkeypatch.setattr(cpu_kernels, "_compile", lambda compiler, runtime, path: path.touch())
    directory = cpu_kernels._compiled_path().parent
    assert directory.parent == tmp_path and directory.name.startswith("lorakit-")
    assert removed_at_exit == [(shutil.rmtree, directory)]
    if case == "read-only":
        monkeypatch.undo()
    else:
        assert "file too short" in cpu_kernels.unavailable()  # it went there


def key():
    cpu_kernels._compiled_path.cache_clear()
    return cpu_kernels._compiled_path().name


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
    monkeypatch.setattr(cpu_kernels, "_FLAGS", (*cpu_kernels._FLAGS, "-g"))
    seen.add(key())
    monkeypatch.setattr(cpu_kernels, "_processor", lambda: "another")
    seen.add(key())
    monkeypatch.setattr(cpu_kernels, "_compiler", lambda: sys.executable)
    seen.add(key())
    assert len(seen) == 4


def test_the_processor_is_the_same_whatever_the_order_of_its_flags():
    assert cpu_kernels._processor() == cpu_kernels._processor()
    assert cpu_kernels._processor().startswith(cpu_kernels.platform.machine())


def test_threads_that_ask_at_once_all_get_them(gcc, cache):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cpu_kernels.load(), range(3)))
    assert None not in found
    assert [path.suffix for path in cache.iterdir()] == [".so"]


USE = """
import json, os, torch, sys
import lorakit, lorakit.ops, lorakit.layers, lorakit.injection
from lorakit.ops import cpu_kernels, skinny
cache = os.path.join(os.environ["XDG_CACHE_HOME"], "lorakit")
before = os.path.exists(cache)
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
lorakit.add_adapter(model, lorakit.LoraConfig(r=2, target_modules=["0"]))
before = before or os.path.exists(cache)
model(torch.ones(3, 8)).sum().backward()
print(json.dumps([before, os.listdir(cache), cpu_kernels.unavailable()]))
"""


def test_processes_that_start_at_once_and_nothing_is_compiled_before_the_first_use(gcc, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "fresh"), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", USE], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    reports = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert all(reason is None for _, _, reason in reports)
    assert not reports[0][0] or not reports[1][0]  # the first found no library when it began
    assert len(list((tmp_path / "fresh" / "lorakit").iterdir())) == 1


@pytest.mark.parametrize(
    ("x", "taken"),
    [
        (torch.ones(2, 3), True),
        (torch.ones(2, 3, dtype=torch.bfloat16), True),
        (torch.nn.Parameter(torch.ones(2, 3)), True),
        (torch.ones(6, 3)[::2], True),
        (torch.ones(2, 6)[:, :3], True),
        (torch.ones(3, 2).t(), False),
        (torch.ones(2, 6)[:, ::2], False),
        (torch.ones(1).expand(2, 3), False),
        (torch.ones(()), False),
        (torch.ones(2, 3, dtype=torch.float64), False),
        (torch.ones(2, 3, dtype=torch.float16), False),
        (torch.ones(2, 3, device="meta"), False),
        (torch.ones(2, 3).as_subclass(type("Wrapped", (torch.Tensor,), {})), False),
    ],
    ids=str,
)
def test_which_activations_they_read(x, taken):
    assert cpu_kernels.takes(x) is taken
