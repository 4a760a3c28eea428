"""What a batch shows: a live table on a terminal, lines elsewhere, and the summary at the end."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Sequence

from sap3d.batch.jobs import Job
from sap3d.results import text_table


class Board:
    """On a terminal a table of the running jobs that redraws itself; elsewhere a line at start and end of each."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs, self.began = jobs, time.time()
        self.terminal, self.drawn, self.lock = sys.stdout.isatty(), 0, threading.Lock()

    def say(self, text: str) -> None:
        with self.lock:
            self._clear()
            print(text, flush=True)

    def started(self, job: Job) -> None:
        if not self.terminal:
            self.say(f"{job.label}: started, log {job.log}")

    def ended(self, job: Job, again: bool) -> None:
        self.say(f"{job.label}: {job.lost[-1]}; attempt {job.attempts + 1} follows" if again else job.report())

    def draw(self, running: Sequence[Job]) -> None:
        """The jobs that run, and a line for all: how many are done, how long it will take."""
        if not self.terminal:
            return
        rows = [["running", "where", "time", "now"]]
        for job in running:
            now = job.last_line() or "starting"
            rows.append([job.label, job.place or "-", f"{time.time() - job.started:.0f} s", now])
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in [*text_table(rows), self.totals(len(running))]]
        with self.lock:
            self._clear()
            print("\n".join(lines))
            self.drawn = len(lines)
            sys.stdout.flush()

    def totals(self, running: int) -> str:
        """"3 of 20 done, 1 failed, 2 running, 14 waiting, about 12 min left"."""
        failed = sum(job.outcome == "failed" for job in self.jobs)
        ended = sum(job.outcome != "" for job in self.jobs)
        fresh = [job for job in self.jobs if job.outcome in ("done", "failed")]
        text = f"{ended - failed} of {len(self.jobs)} done, {failed} failed, {running} running, {len(self.jobs) - ended - running} waiting"
        if fresh and ended < len(self.jobs):
            text += f", about {(time.time() - self.began) / len(fresh) * (len(self.jobs) - ended) / 60:.0f} min left"
        return text

    def clear(self) -> None:
        with self.lock:
            self._clear()

    def _clear(self) -> None:
        print("\033[F\033[K" * self.drawn, end="")
        self.drawn = 0


def summary(jobs: Sequence[Job]) -> str:
    """A table with a row a job: outcome, attempts, time of the last one, and where it ran."""
    rows = [["object", "views", "outcome", "attempts", "minutes", "where"]]
    for job in jobs:
        rows.append([job.name, str(job.views), job.outcome or "not run", str(job.attempts), f"{job.seconds / 60:.1f}" if job.outcome == "done" else "-", job.place or "-"])
    return "\n".join(text_table(rows))
