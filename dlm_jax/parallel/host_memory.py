"""The host allocator's treatment of the large, short-lived buffers of a CPU backend."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt(3), and the values that keep what was freed: nothing is mapped on
# its own, nothing is given back, and all threads share one heap (others are always given back).
_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX
    (-1, -1),  # M_TRIM_THRESHOLD, never
    (-8, 1),  # M_ARENA_MAX
)


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for its next allocation.

    By default glibc maps each large buffer anew, and the kernel then clears its pages one fault at
    a time: writing 50 MB costs several times as long as it should, in every step. Call it before
    JAX starts its threads; on accelerators it changes nothing worth having.

    Returns:
        Whether the C library took the settings (glibc on Linux does).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([bool(mallopt(parameter, value)) for parameter, value in _SETTINGS])
