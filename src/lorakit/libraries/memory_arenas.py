"""Where threads get their memory from: glibc's arenas."""

import ctypes
import platform

_MAIN_ARENA_ONLY = (
    (-8, 1),  # M_ARENA_MAX
    (-3, 32 << 20),  # M_MMAP_THRESHOLD, the largest value; setting the next one fixes it
    (-1, 1 << 30),  # M_TRIM_THRESHOLD
)


def keep_one_arena() -> bool:
    """Let threads that start from now on share the main arena, which keeps what is freed.

    By default each thread gets an arena of pieces of at most 64 MiB, which go back to the system
    as soon as they are free. Where a training step frees its activations in such a thread, the next
    step gets every page of them from the system again, filled with zeros. The process so keeps the
    memory of its largest step until it ends.

    Returns: Whether the C library is glibc, which has arenas.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(*setting) == 1 for setting in _MAIN_ARENA_ONLY])
