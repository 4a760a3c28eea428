"""One run at a time on an object: a lock file that the system frees when its owner ends, however it ends.

    python -m sap3d.lock DESCRIPTOR TYPE OBJECT VIEWS      (for run_pipeline.sh, which holds the file open)

The lock is ``flock`` on ``results/<TYPE>_<OBJECT>_view_<N>.lock``; the file says who holds it. It is removed at the end, and
one that a killed run leaves is taken over by the next. Where the file system has no locks, or nothing can be written, runs
are not kept apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sys
import time
from pathlib import Path
from typing import Iterator

from sap3d.errors import InputError, cli
from sap3d.scene import Scene

HELD = "SAP3D_LOCK"  # path of the lock file that the driver holds for the programs it starts
WAIT = "SAP3D_LOCK_WAIT"  # seconds to wait for a lock that another run holds (default 0)


def lock_file(scene: Scene) -> Path:
    return scene.root / "results" / f"{scene.type}_{scene.object}_view_{scene.views}.lock"


@contextlib.contextmanager
def run_lock(scene: Scene) -> Iterator[None]:
    """Holds the lock of ``scene`` while the block runs; InputError when another run holds it. Free of charge under the driver."""
    path, held = lock_file(scene), False
    with contextlib.suppress(OSError):
        if os.path.samefile(os.environ.get(HELD, ""), path):
            held = True
    if held:
        yield
        return
    descriptor = None
    end = time.time() + _wait_seconds()
    while descriptor is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError:  # a folder that cannot be written: nothing can be overwritten either
            break
        try:
            if acquire(opened, path, end):
                descriptor = opened
        finally:
            if descriptor is None:
                os.close(opened)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who waits for it sees that the file is another one, and opens again
            os.close(descriptor)


def acquire(descriptor: int, path: Path, end: float) -> bool:
    """Lock the open file, waiting until ``end`` (seconds since 1970); False when ``path`` is another file by now.

    Raises InputError when somebody else holds it.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.time() >= end:
                owner = _text(path) or "another program"
                raise InputError(f"{path}: another run works on this object ({owner}); wait for it or end it, then run the same command again") from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return True
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if (found.st_ino, found.st_dev) == (os.fstat(descriptor).st_ino, os.fstat(descriptor).st_dev):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.environ.get('SAP3D_DRIVER') or os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
            return True
    return False


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text(errors="replace")[:200].split())
    except OSError:
        return ""


def _wait_seconds() -> float:
    text = os.environ.get(WAIT) or "0"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{WAIT}={text!r} is not a number of seconds") from None


def main() -> None:
    descriptor, type_, object_, views = sys.argv[1:5]
    path = lock_file(Scene(type_, object_, int(views)))
    if not acquire(int(descriptor), path, time.time() + _wait_seconds()):
        raise SystemExit(75)  # the file was removed by its last owner between opening and locking: open it again


if __name__ == "__main__":
    cli(main)
