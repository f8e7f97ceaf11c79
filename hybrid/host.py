"""Process settings that make CPU runs fast; harmless elsewhere."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Makes the allocator keep what it frees, and says whether it could.

    By default glibc gives large buffers back to the kernel, which then has to hand out zeroed
    pages again in the next step: a fresh 32 MB array costs about 9 ms, a reused one 2. The peak of
    the process is the same, it just does not shrink in between.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, -1)) and bool(mallopt(_M_MMAP_MAX, 0))
