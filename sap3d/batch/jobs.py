"""A job is one object with one number of views on its way through run_pipeline.sh."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

DEVICE = "\0device"  # no file name and no argument can be this
BAD_INPUT = 2  # exit status that a repetition does not change
GRACE_SECONDS = 60  # for a checkpoint, after an interrupt


@dataclass
class Job:
    """``command`` holds ``DEVICE`` where the device's index goes; the log is appended to, an attempt begins at ``offset``."""

    name: str
    views: int
    label: str  # "[2/7] armchair, 5 views"
    command: list[str]
    log: Path
    results: Path
    attempts: int = 0
    started: float = 0.0  # of the attempt
    seconds: float = 0.0  # of the last attempt
    offset: int = 0
    place: str = ""  # where it runs: node and device
    outcome: str = ""  # "", "done", "already finished" or "failed"
    cause: str = ""
    lost: list[str] = field(default_factory=list)  # causes of attempts that were repeated

    def begin(self) -> None:
        """Count an attempt; what the log holds from here on is its own."""
        self.attempts += 1
        self.started = time.time()
        self.offset = self.log.stat().st_size if self.log.is_file() else 0

    def finish(self, result: Attempt, retries: int) -> bool:
        """Take the result of an attempt; True when the job is to be tried again."""
        self.seconds, self.place = time.time() - self.started, result.place or self.place
        if result.status == 0:
            self.outcome = "done" if result.fresh else "already finished"
            return False
        if result.status != BAD_INPUT and self.attempts <= retries:
            self.lost.append(result.cause)
            return True
        self.outcome, self.cause = "failed", result.cause
        return False

    def last_line(self) -> str:
        """The newest line of this attempt's log; empty before it has begun."""
        lines = read_from(self.log, self.offset)
        if lines and lines[0].startswith("--- ") and " on " in lines[0]:
            self.place = lines[0].split(" on ", 1)[1]
        return lines[-1] if lines else ""

    def report(self) -> str:
        if self.outcome == "failed":
            return f"{self.label}: failed: {self.cause}"
        again = f", attempt {self.attempts}" if self.attempts > 1 else ""
        return f"{self.label}: {self.outcome}" + (f" in {self.seconds / 60:.1f} min{again}" if self.outcome == "done" else "")


@dataclass
class Attempt:
    """How one run of run_pipeline.sh ended. ``fresh``: it was no repetition that left finished figures alone."""

    status: int
    cause: str
    fresh: bool
    place: str


def run_attempt(
    command: list[str], log: Path, results: Path, device: str, node: str = "", variables: dict | None = None, on_start: Callable | None = None, bound: bool = False
) -> Attempt:
    """Run ``command`` on ``device`` ("cpu" or a GPU's index) to its end, its output appended to ``log``; ``node``: its name for the log.

    ``bound``: the run is ended (with a checkpoint) when this process dies. An interrupt is passed on, and waited for.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    before = results.stat().st_mtime_ns if results.is_file() else 0
    place = f"{node or platform.node()}, {'CPU' if device == 'cpu' else 'GPU ' + device}"
    with open(log, "ab") as stream:
        stream.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} on {place}\n".encode())
        stream.flush()
        offset = stream.tell()
        process = subprocess.Popen(
            [device if part == DEVICE else part for part in command], stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **(variables or {})}, preexec_fn=_end_with_parent if bound else None,
        )  # fmt: skip
    if on_start is not None:
        on_start(process)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        stop(process)
        raise
    cause = ""
    if status:
        lines = read_from(log, offset) or [f"status {status}, no output"]
        cause = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        if status < 0:
            cause = f"killed by signal {-status}"
    return Attempt(status, cause, not results.is_file() or results.stat().st_mtime_ns != before, place)


def stop(*processes: subprocess.Popen) -> None:
    """Ask running attempts for a checkpoint and their end; those that take longer than ``GRACE_SECONDS`` are killed."""
    running, end = [process for process in processes if process.poll() is None], time.monotonic() + GRACE_SECONDS
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    for process in running:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1: PR_SET_PDEATHSIG


def read_from(log: Path, offset: int) -> list[str]:
    """Lines of a log that are not empty, from a place on; of lines that update themselves the last state."""
    try:
        with open(log, "rb") as stream:
            stream.seek(offset)
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line.split("\r")[-1].strip() for line in text.split("\n") if line.strip()]
