"""How the C library handles the host's memory."""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next step, instead of giving it back to the system.

    XLA's CPU backend takes and frees its buffers at every step; with the defaults each step then faults all
    of its pages in again. Must be called before other threads start.

    Returns:
        Whether it did anything: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_THRESHOLD: 2**25,  # the largest that glibc takes
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: 2**28,
        _M_ARENA_MAX: 1,  # other arenas are small heaps that grow and shrink by mmap
    }
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
