"""Memory that a tensor leaves is used for the next one (sap3d/__init__.py)."""

import os
import platform
import subprocess
import sys

import pytest

from sap3d.scene import REPOSITORY

COUNT = """
import ctypes, resource, sap3d
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(30):
    block = libc.malloc(40_000_000)
    libc.memset(block, 1, 40_000_000)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(**settings: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | settings
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_unless_the_environment_decides():
    kept, returned = page_faults(), page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert returned > 5 * kept, (kept, returned)
