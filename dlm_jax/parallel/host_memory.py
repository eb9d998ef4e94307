"""The host allocator's treatment of the large, short-lived buffers of a CPU backend."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for its next allocation.

    By default glibc maps each large buffer anew, and the kernel then clears its pages one fault at
    a time: writing 50 MB costs several times as long as it should, in every step. Call it before
    the first computation on a CPU; on accelerators it changes nothing worth having.

    Returns:
        Whether the C library took the settings (glibc on Linux does).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
