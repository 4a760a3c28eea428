"""The contract that the three stages share: cameras, scene files, images, configuration, Zero-1-to-3, metrics."""

import os

__version__ = "0.1.0"

# How long a thread that waits for others spins before it sleeps. Not at all costs a fifth of stage 3's time on idle cores; the C library's own choice
# makes two runs on the same cores twenty times slower; this costs them a fifth (docs/log.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors leave for the next ones: it would give large blocks back to the system at once,
    and a sixth of a stage's time on a CPU went into getting and clearing them again (docs/log.md). Does nothing without glibc, or where the
    environment has settings of its own (MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES)."""
    import ctypes
    import sys

    if not sys.platform.startswith("linux") or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


_keep_freed_memory()
